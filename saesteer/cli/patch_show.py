"""What `saesteer patch` prints besides its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saesteer.report import Table
from saesteer.report.patch import SAID, site_table
from saesteer.report.terminal import console, heading, one_line, print_table, show_plan

if TYPE_CHECKING:
    from saesteer.experiments.patch.experiment import PatchPlan
    from saesteer.patching.lens import PromptReading
    from saesteer.patching.suggest import Suggestion


def show_patch_plan(plan: PatchPlan) -> None:
    """Print what a patching run would do."""
    from saesteer.experiments.patch.results import jobs
    from saesteer.utils.run_folder import RunFolder

    config, folder = plan.config, RunFolder(plan.folder)
    work = list(jobs(config))
    done = sum(folder.has(job.file) for job in work)
    ioi = config.pairs.ioi
    if plan.pairs is not None:
        pairs = f"{len(plan.pairs)} of {config.pairs.source}"
    else:
        pairs = "the eight IOI prompts" if ioi and ioi.eight else f"{ioi.n if ioi else 0} of IOI"
    attribution = "none" if config.attribution is None else ", ".join(config.attribution.methods)
    show_plan(
        {
            "pairs": pairs + (", each both ways" if config.pairs.both_ways else ""),
            "model": str(plan.model),
            "SAE": config.sae or "none",
            "metric": f"{config.metric}, {' and '.join(config.modes)}",
            "components": ", ".join(config.components),
            "attribution": attribution,
            "results": f"{len(work)}, of which {done} are there",
        },
        plan.folder,
    )


def show_suggestion(suggestion: Suggestion, verdict: str) -> None:
    """Print the site to steer with its rivals and the evidence."""
    out = console()
    if verdict in ("not", "unclear"):
        out.print(f"Careful: {SAID[verdict]}.")
    if suggestion.ranked:
        print_table(out, site_table(suggestion.record()["ranked"]))
    for sentence in suggestion.sentences:
        out.print(sentence)
    if suggestion.best is not None:
        out.print(f'Write there with positions "{suggestion.positions}" of a steering vector.')


def show_lens(readings: Sequence[PromptReading], *, every: int = 1) -> None:
    """Print what each prompt's last token is read as, layer by layer."""
    out = console()
    for reading in readings:
        heading(out, reading.prompt if len(reading.prompt) < 90 else f"{reading.prompt[:89]}…")
        last = len(reading.points) - 1
        rows = [
            [
                point,
                int(reading.rank[i]),
                float(reading.probability[i]),
                float(reading.margin[i]),
                ", ".join(repr(token) for token in reading.top[i][-1]),
            ]
            for i, point in enumerate(reading.points)
            if i in (0, last) or (point.endswith("resid_post") and not _layer(point) % every)
        ]
        columns = ["after", "rank", "probability", "margin", "most likely"]
        forms = {"probability": ".1%", "margin": "+.2f"}
        print_table(out, Table(columns, rows, forms=forms, most=len(rows)))
        words = (
            f"rank, probability: of {reading.answer!r}, the model's answer; margin: its logit less "
            f"that of {reading.other!r}"
        )
        out.print(one_line(words))


def _layer(point: str) -> int:
    return int(point.split()[0])
