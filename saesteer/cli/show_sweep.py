"""What `saesteer sweep` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from saesteer.cli.show import heading, number, table
from saesteer.sweeps.results import BEST, REPORT, labels, short_name
from saesteer.sweeps.sweep_file import COMMANDS

if TYPE_CHECKING:
    from rich.console import Console

    from saesteer.sweeps.results import SweepResult
    from saesteer.sweeps.study import SweepStudy
    from saesteer.sweeps.sweep import Sweep, Trial
    from saesteer.utils.progress import Progress

MOST_ROWS = 15
MOST_ERRORS = 5


class Tally:
    """Says how far a study is, whenever that has changed.

    Args:
        study: The study.
        progress: Where to say it.
    """

    def __init__(self, study: SweepStudy, progress: Progress) -> None:
        self._study, self._progress = study, progress
        self._said = ""

    def __call__(self) -> None:
        """Say it, if there is something new."""
        rows, sweep = self._study.rows(), self._study.sweep
        ended = [row for row in rows if row.state not in ("waiting", "running")]
        failed = sum(row.state == "failed" for row in rows)
        total = max(len(rows), sweep.count or 0) if sweep.method == "bayes" else len(rows)
        line = f"{len(ended)} of {total} trials ended"
        line += f", {failed} failed" if failed else ""
        values = [row.value for row in rows if row.value is not None]
        if values:
            best = max(values, key=lambda value: sweep.sign * value)
            line += f"; best {sweep.metric} {best:.4g}"
        if ended and line != self._said:
            self._said = line
            self._progress.say(line)


def show_sweep_plan(sweep: Sweep, trials: Sequence[Trial], out: Console) -> None:
    """Print what a sweep would do."""
    what = f"up to {sweep.count}" if sweep.method == "bayes" else len(trials)
    out.print(
        f"{sweep.name}: {what} trials of saesteer {sweep.kind} {sweep.base_file} ({sweep.method})"
    )
    out.print(f"Metric: {sweep.metric}, {sweep.goal}")
    rows = table("parameter", "drawn from", "values")
    for parameter in sweep.parameters:
        shown = ", ".join(str(value) for value in parameter.values[:12])
        if not shown and parameter.min is None:
            shown = f"mean {parameter.mu:g}, sigma {parameter.sigma:g}"
        shown = shown or f"{parameter.min:g} to {parameter.max:g}"
        rows.add_row(parameter.name, parameter.distribution, Text(shown))
    out.print(rows)
    if sweep.early is not None:
        out.print(sweep.early.note(sweep.kind))
    out.print(f"Would write to {sweep.folder}", soft_wrap=True)
    out.print("Nothing was loaded or written.")


def show_sweep_result(result: SweepResult, folder: Path, out: Console) -> None:
    """Print the best trials, what mattered, and where everything is."""
    sweep = result.sweep
    states = ", ".join(f"{count} {state}" for state, count in result.states.items())
    heading(out, f"{sweep.name}: {states or 'no trials'}")
    out.print(_best_trials(result))
    _show_errors(result, out)
    if result.importance:
        shares = ", ".join(f"{short_name(n)} {v:.0%}" for n, v in result.importance.items())
        out.print(f"Share of the variance: {shares}")
    for note in result.notes:
        out.print(note)
    out.print()
    out.print(f"Report:  {folder / REPORT}", soft_wrap=True)
    if result.best is not None:
        command = COMMANDS.get(sweep.kind, sweep.kind)
        out.print(f"Next:    saesteer {command} {folder / BEST}", soft_wrap=True)


def _best_trials(result: SweepResult):
    sweep = result.sweep
    ended = [row for row in result.rows if row.value is not None]
    order = sorted(ended, key=lambda row: (-sweep.sign * (row.value or 0.0), row.number))
    extra = [name for name in ("effect", "kl") if name != sweep.metric]
    names = [short_name(p.name) for p in sweep.searched]
    made = table(
        ("trial", "right"),
        *names,
        (sweep.metric, "right"),
        *((name, "right") for name in extra),
        ("seconds", "right"),
    )
    for row in order[:MOST_ROWS]:
        words = [Text(word) for word in labels(sweep.searched, row).values()]
        numbers = [number(row.value, ".4f"), *(number(row.numbers.get(n), ".3f") for n in extra)]
        seconds = number(row.seconds, ".0f")
        left = " *" if row.state == "stopped early" else ""
        made.add_row(f"{row.number}{left}", *words, *numbers, seconds)
    return made


def _show_errors(result: SweepResult, out: Console) -> None:
    ended = [row for row in result.rows if row.value is not None]
    if len(ended) > MOST_ROWS:
        out.print(f"... and {len(ended) - MOST_ROWS} more in table.csv")
    if any(row.state == "stopped early" for row in ended):
        out.print("* stopped early: measured, but left without null, curves and completions")
    failed = [row for row in result.rows if row.error]
    for row in failed[:MOST_ERRORS]:
        out.print(f"trial {row.number} failed: {row.error}")
    if len(failed) > MOST_ERRORS:
        out.print(f"... and {len(failed) - MOST_ERRORS} more failures in table.csv")
    if failed:
        out.print("Correct what can be corrected, and run again with --retry-failed.")
