"""What `saesteer patch` prints: tables that fit 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saesteer.cli.show import console, heading, number, table
from saesteer.experiments.patch.page import unsolved

if TYPE_CHECKING:
    from saesteer.experiments.patch.experiment import PatchPlan
    from saesteer.experiments.results import Results
    from saesteer.patching.lens import PromptReading
    from saesteer.patching.suggest import Suggestion

MOST = 6
SAID = {
    "solved": "it solves the task",
    "partly": "it solves a part of the task",
    "unclear": "so few prompts cannot tell that from chance",
    "not": "it does NOT solve the task",
}


def show_patch_plan(plan: PatchPlan) -> None:
    """Print what a patching run would do."""
    from saesteer.experiments.patch.results import jobs
    from saesteer.utils.run_folder import RunFolder

    out = console()
    config, folder = plan.config, RunFolder(plan.folder)
    work = list(jobs(config))
    done = sum(folder.has(job.file) for job in work)
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    ioi = config.pairs.ioi
    if plan.pairs is not None:
        pairs = f"{len(plan.pairs)} of {config.pairs.source}"
    else:
        pairs = "the eight IOI prompts" if ioi and ioi.eight else f"{ioi.n if ioi else 0} of IOI"
    attribution = "none" if config.attribution is None else ", ".join(config.attribution.methods)
    rows = {
        "pairs": pairs + (", each both ways" if config.pairs.both_ways else ""),
        "model": f"{plan.model.name} ({plan.model.kind}: {plan.model.location})",
        "SAE": config.sae or "none",
        "metric": f"{config.metric}, {' and '.join(config.modes)}",
        "components": ", ".join(config.components),
        "attribution": attribution,
        "results": f"{len(work)}, of which {done} are there",
        "folder": str(plan.folder),
    }
    for name, value in rows.items():
        made.add_row(name, value)
    out.print(made)
    out.print("Nothing was loaded or written.")


def show_patch_run(run: Results) -> None:
    """Print the task, the strongest cells, and where everything lies."""
    out = console()
    metrics = run.metrics
    heading(out, f"{metrics['name']}: {metrics['model']}, {metrics['pairs']} pairs")
    _show_task(out, metrics)
    _show_strongest(out, metrics)
    _show_agreement(out, metrics)
    circuit = metrics.get("circuit")
    if circuit:
        out.print(
            f"Circuit: {circuit['size']} heads recover {circuit['held_out']['recovered']:.2f} of "
            f"what all heads do, on {circuit['pairs']} "
            + ("held-out pairs." if circuit["origin"] == "found" else "pairs.")
        )
    suggestion = metrics.get("suggestion")
    if suggestion:
        out.print()
        out.print(suggestion["sentences"][0])
    path = run.folder.path
    out.print()
    out.print(f"Report: {path / 'report.html'}", soft_wrap=True)
    out.print(f"Tables: {path / 'tables'}, figures: {path / 'figures'}; next:", soft_wrap=True)
    out.print(f"  saesteer patch show {path} --suggest-site", soft_wrap=True)


def _show_task(out: Console, metrics: Mapping[str, Any]) -> None:
    task = metrics["task"]
    out.print(
        f"Accuracy {task['accuracy']:.0%}{_ends(task.get('accuracy_interval'), '.0%')} of "
        f"{2 * metrics['pairs']} prompts: {SAID[metrics['verdict']]}"
        f"{unsolved(metrics) if metrics['verdict'] == 'not' else ''}."
    )
    out.print(
        f"Logit difference: clean {task['logit_difference_clean']:+.2f}"
        f"{_ends(task.get('clean_interval'), '+.2f')}, corrupted "
        f"{task['logit_difference_corrupted']:+.2f}{_ends(task.get('corrupted_interval'), '+.2f')}"
    )


def _show_strongest(out: Console, metrics: Mapping[str, Any]) -> None:
    share = metrics["scale"] == "share"
    made = table("component", "mode", "strongest cells")
    for name, cells in metrics["strongest"].items():
        method, _, rest = name.partition("-")
        component, _, mode = rest.rpartition("-")
        said = [f"{_cell(cell)} {cell['effect']:+.2f}" for cell in cells[:MOST] if cell["effect"]]
        component = component if method == "activation" else f"path {component}"
        made.add_row(component, mode, Text(", ".join(said)))
    out.print()
    out.print(made)
    out.print(
        "Effects are shares of the gap between corrupted and clean."
        if share
        else "Effects are in the metric's own units: there is no gap beyond chance."
    )


def _cell(cell: Mapping[str, Any]) -> str:
    """Return a cell's name, such as "9.6" or "12 at the answer position"."""
    place = cell.get("place")
    where = ".".join(str(cell[key]) for key in ("layer", "head") if key in cell)
    where = where or str(cell.get("feature", cell.get("cluster", "")))
    return where if place is None else f"{where} {_short(str(place))}"


def _short(place: str) -> str:
    return {"words that differ": "differing", "answer position": "answer"}.get(place, place)


def _show_agreement(out: Console, metrics: Mapping[str, Any]) -> None:
    said = [
        f"{name.partition('-')[2]} {number(values['rank_correlation'], '.2f')}"
        for name, values in metrics["agreement"].items()
        if name.startswith("attribution-") and values["rank_correlation"] is not None
    ]
    if said:
        out.print(f"Rank correlation of attribution with patching: {', '.join(said)}")


def show_suggestion(suggestion: Suggestion, verdict: str) -> None:
    """Print the site to steer with its rivals and the evidence."""
    out = console()
    if verdict in ("not", "unclear"):
        out.print(f"Careful: {SAID[verdict]}.")
    if suggestion.ranked:
        made = table(
            "site",
            "where",
            ("effect (95%)", "right"),
            ("headroom", "right"),
            ("score", "right"),
            ("attribution", "right"),
        )
        for cell in suggestion.ranked:
            ends = "" if cell.low is None else f" ({cell.low:.2f}, {cell.high:.2f})"
            made.add_row(
                cell.site,
                cell.place,
                f"{cell.effect:.2f}{ends}",
                f"{cell.headroom:.2f}",
                f"{cell.score:.2f}",
                "" if cell.attribution is None else f"{cell.attribution:.2f}",
            )
        out.print(made)
    for sentence in suggestion.sentences:
        out.print(sentence)
    if suggestion.best is not None:
        out.print(f'Write there with positions "{suggestion.positions}" of a steering vector.')


def show_lens(readings: Sequence[PromptReading], *, every: int = 1) -> None:
    """Print what each prompt's last token is read as, layer by layer."""
    out = console()
    for reading in readings:
        heading(out, reading.prompt if len(reading.prompt) < 90 else f"{reading.prompt[:89]}…")
        made = table(
            "after", ("rank", "right"), ("probability", "right"), ("margin", "right"), "most likely"
        )
        last = len(reading.points) - 1
        shown = [
            i
            for i, point in enumerate(reading.points)
            if i in (0, last) or (point.endswith("resid_post") and not _layer(point) % every)
        ]
        for i in shown:
            made.add_row(
                reading.points[i],
                str(reading.rank[i]),
                f"{reading.probability[i]:.1%}",
                f"{reading.margin[i]:+.2f}",
                Text(", ".join(repr(token) for token in reading.top[i][-1])),
            )
        out.print(made)
        out.print(
            Text(
                f"rank, probability: of {reading.answer!r}, the model's answer; margin: its logit "
                f"less that of {reading.other!r}"
            )
        )


def _layer(point: str) -> int:
    return int(point.split()[0])


def _ends(interval: Sequence[float] | None, form: str) -> str:
    return "" if not interval else f" ({interval[0]:{form}} to {interval[1]:{form}})"
