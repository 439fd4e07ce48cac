"""What a sweep found: its table, what mattered, what is not beaten, and the best settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.sweeps.early import early_note
from saesteer.sweeps.overrides import TOGETHER, yaml_text
from saesteer.sweeps.parameters import Parameter
from saesteer.sweeps.rows import TrialRow
from saesteer.sweeps.spec import SweepSpec
from saesteer.sweeps.sweep_file import COMMANDS
from saesteer.utils.run_folder import RunFolder, finite

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.tracking.recording import RecordedRun

RESULT, BEST, REPORT = "sweep.json", "best.yaml", "report.html"
TABLE = ("table.parquet", "table.csv", "table.md")
# Below this, an importance says more of the luck of the draw than of the parameter.
FEWEST_TRIALS = 8


@dataclass(frozen=True)
class SweepResult:
    """A sweep as it stands.

    Attributes:
        spec: The sweep.
        rows: Its trials.
        best: The best of those that ended; None if none has.
        importance: Each parameter's share of the variance of the metric (fANOVA); empty where
            there are too few trials.
        pareto: Numbers of the trials that no other one beats: none has at least their effect at
            no more than their cost, and more of the one or less of the other.
        notes: What to know when reading it.
    """

    spec: SweepSpec
    rows: tuple[TrialRow, ...]
    best: TrialRow | None
    importance: dict[str, float]
    pareto: tuple[int, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return `sweep.json`."""
        spec = self.spec
        return {
            "name": spec.name,
            "study": spec.study,
            "kind": spec.kind,
            "method": spec.method,
            "metric": spec.metric,
            "goal": spec.goal,
            "seed": spec.seed,
            "base_file": spec.base_file,
            "parameters": [_parameter_record(p, self.rows) for p in spec.searched],
            "constants": spec.constants,
            "states": self.states,
            "best": None if self.best is None else self.best.number,
            "importance": self.importance,
            "pareto": list(self.pareto),
            "notes": list(self.notes),
            "trials": [{**asdict(row), "labels": labels(spec.searched, row)} for row in self.rows],
        }

    @property
    def states(self) -> dict[str, int]:
        """How many trials are in each state."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.state] = found.get(row.state, 0) + 1
        return found


def sweep_result(spec: SweepSpec, rows: Sequence[TrialRow]) -> SweepResult:
    """Sum up a sweep's trials.

    Args:
        spec: The sweep.
        rows: Its trials.
    """
    ended = [row for row in rows if row.state == "done" and row.value is not None]
    sign = 1 if spec.goal == "maximize" else -1
    best = max(ended, key=lambda row: (sign * (row.value or 0.0), -row.number), default=None)
    importance, said = importances(spec, ended)
    front = pareto(ended)
    notes = [said, _front_note(ended), early_note(spec.hyperband, spec.kind)]
    return SweepResult(
        spec, tuple(rows), best, importance, front, tuple(note for note in notes if note)
    )


def importances(spec: SweepSpec, rows: Sequence[TrialRow]) -> tuple[dict[str, float], str | None]:
    """Return each parameter's share of the metric's variance, and why it is not there.

    Functional ANOVA over random forests (Hutter et al. 2014), as Optuna has it.

    Args:
        spec: The sweep.
        rows: Trials that ended.
    """
    searched = [p for p in spec.searched if len({str(r.codes[p.name]) for r in rows}) > 1]
    if not searched:
        return {}, "No importance: no parameter took two values among the trials that ended."
    if len(rows) < FEWEST_TRIALS:
        return {}, (
            f"No importance: {len(rows)} trials have ended, and below {FEWEST_TRIALS} it would say "
            "little."
        )
    if len({row.value for row in rows}) < 2:
        return {}, "No importance: every trial has the same value."
    import optuna

    from saesteer.sweeps.storage import quiet_optuna

    with quiet_optuna():
        study = optuna.create_study(direction=spec.goal)
        for row in rows:
            study.add_trial(
                optuna.trial.create_trial(
                    value=row.value,
                    params={p.name: row.codes[p.name] for p in searched},
                    distributions={p.name: p.space() for p in searched},
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=spec.seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}, None


def pareto(rows: Sequence[TrialRow]) -> tuple[int, ...]:
    """Return the trials on the front of effect against KL, cheapest first.

    The cost is the KL target that a trial was given: what was measured lies within 3% of it, and
    differences of that size are no cost.
    """
    points = [(r.numbers["kl_target"], r.numbers["effect"], r.number) for r in rows if _on_plane(r)]
    front = []
    most = float("-inf")
    for _, effect, number in sorted(points, key=lambda p: (p[0], -p[1], p[2])):  # type: ignore[operator]
        if effect > most:  # type: ignore[operator]
            front.append(number)
            most = effect  # type: ignore[assignment]
    return tuple(front)


def _on_plane(row: TrialRow) -> bool:
    return row.numbers.get("kl_target") is not None and row.numbers.get("effect") is not None


def _front_note(rows: Sequence[TrialRow]) -> str | None:
    kl_targets = {row.numbers["kl_target"] for row in rows if _on_plane(row)}
    if len(kl_targets) != 1:
        return None
    return (
        f"Every trial was given the same KL target ({kl_targets.pop():g}), so the front is the "
        "best one alone; sweep evaluation.kl_target to see one."
    )


def labels(parameters: Sequence[Parameter], row: TrialRow) -> dict[str, str]:
    """Return a trial's parameters as short words."""
    return {p.name: label(p, row.values.get(p.name)) for p in parameters}


def label(parameter: Parameter, value: Any) -> str:
    """Return a value as a short word; of settings that change together, the one that tells."""
    if isinstance(value, dict):
        others = [v for v in parameter.values if isinstance(v, dict)]
        # Words tell more than numbers.
        for kind in (str, int | float):
            for key, inner in value.items():
                same = [v.get(key) for v in others]
                if all(isinstance(v, kind) for v in same) and len(set(same)) == len(others):
                    return str(inner)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return yaml_text(value) if not isinstance(value, str) else value


def short_name(name: str) -> str:
    """Return a parameter's name as tables show it."""
    return name.removeprefix(f"{TOGETHER}.").rpartition(".")[2]


def _parameter_record(parameter: Parameter, rows: Sequence[TrialRow]) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "short": short_name(parameter.name),
        "distribution": parameter.distribution,
        "is_number": parameter.is_number,
        "is_log": parameter.is_log,
        "choices": [label(parameter, value) for value in parameter.values],
    }


def result_table(result: SweepResult) -> pd.DataFrame:
    """Return a row for each trial: parameters, state, metric and numbers."""
    import pandas as pd

    names = sorted({name for row in result.rows for name in row.numbers})
    records = []
    for row in result.rows:
        record: dict[str, Any] = {"trial": row.number, **labels(result.spec.searched, row)}
        for parameter in result.spec.searched:
            if parameter.is_number:
                record[parameter.name] = row.values.get(parameter.name)
        record |= {"state": row.state, "value": row.value}
        record |= {name: row.numbers.get(name) for name in names}
        record |= {"seconds": row.seconds, "attempts": row.attempts, "folder": row.folder}
        record |= {"error": row.error, "key": row.key}
        records.append(record)
    return pd.DataFrame.from_records(records)


def write_results(result: SweepResult, folder: Path) -> Path:
    """Write table, summary, best settings and report page into the sweep's folder.

    Raises:
        OutputError: A file cannot be written.
    """
    from saesteer.report.sweep_page import write_sweep_page

    files, table = RunFolder(folder), result_table(result)
    record = finite(result.as_dict())
    files.write_json(RESULT, record)
    files.write(TABLE[0], lambda draft: table.to_parquet(draft, index=False))
    files.write(TABLE[1], lambda draft: table.to_csv(draft, index=False))
    files.write(TABLE[2], lambda draft: draft.write_text(markdown(result), encoding="utf-8"))
    if result.best is not None:
        text = best_settings(result)
        files.write(BEST, lambda draft: draft.write_text(text, encoding="utf-8"))
    write_sweep_page(record, folder / REPORT)
    return folder


def best_settings(result: SweepResult) -> str:
    """Return the best trial's settings as the YAML that `saesteer run` takes."""
    import yaml

    spec, best = result.spec, result.best
    assert best is not None
    command = " ".join(COMMANDS[spec.kind])
    head = (
        f"# Trial {best.number} of {spec.study}: {spec.metric} {best.value:.6g}, the best of "
        f"{result.states.get('done', 0)}.\n# saesteer {command} THIS_FILE\n"
    )
    settings = spec.pinned_trial.settings(best.values)
    return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def markdown(result: SweepResult) -> str:
    """Return the trials, best first, as a table of Markdown."""
    spec = result.spec
    sign = 1 if spec.goal == "maximize" else -1
    order = sorted(
        result.rows,
        key=lambda r: (r.value is None, -sign * (r.value or 0.0), r.number),
    )
    metric = spec.metric or "value"
    extra = [n for n in ("effect", "kl") if n != metric]
    heads = ["trial", *(short_name(p.name) for p in spec.searched), metric, *extra, "state"]
    lines = [f"# {spec.study}", "", *_markdown_head(heads)]
    for row in order:
        shown = labels(spec.searched, row)
        numbers = [row.value, *(row.numbers.get(name) for name in extra)]
        cells = [
            str(row.number),
            *shown.values(),
            *("" if n is None else f"{n:.4g}" for n in numbers),
        ]
        state = row.state if row.error is None else f"{row.state}: {row.error}"
        lines.append("| " + " | ".join(_cell(cell) for cell in [*cells, state]) + " |")
    lines += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_head(heads: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(map(_cell, heads)) + " |", "|" + " --- |" * len(heads)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def tell_sweep(recorded: RecordedRun, result: SweepResult) -> None:
    """Tell the record what a sweep found; its files are written."""
    from saesteer.report.sheet import Drawing
    from saesteer.report.sweep_page import sweep_sheet

    recorded.summary({"states": result.states, "best": result.best and result.best.value})
    recorded.table("trials", result_table(result))
    if recorded.shown_elsewhere:
        for part in sweep_sheet(result.as_dict()).parts:
            for drawn in (item for item in part.items if isinstance(item, Drawing)):
                recorded.figure(part.title.lower().replace(" ", "-"), drawn.figure)
    recorded.artifact("report", recorded.folder.path / REPORT, "report")
