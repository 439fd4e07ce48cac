"""Reading without patching: the task's answers, the logit lens, direct logit attribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.patch.context import PatchContext
from saesteer.experiments.patch.results import TASK
from saesteer.patching.summary import draws_of, sample_means
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

ANSWERS, LENS, DIRECT = "answers", "lens", "direct"
RESAMPLES = 2000


def run_answers(bench: PatchContext) -> None:
    """Ask the model every prompt, and keep what it answers and how often that is right."""
    from saesteer.patching.reading.answers import task_answers

    if bench.folder.has(TASK):
        return
    bench.progress.say(f"Asking the model {2 * len(bench.batch)} prompts")
    found = task_answers(bench.model, bench.batch)
    write_table(bench.folder, ANSWERS, found.frame())
    seed = bench.plan.config.seed
    record: dict[str, Any] = dict(found.summary())
    names = [pair.name for pair in bench.batch.pairs]
    samples = len(set(draws_of(names).tolist()))
    record |= {
        "pairs": len(bench.batch),
        "solved": int(found.solved.sum()),
        "accuracy_interval": wilson(found.accuracy, samples),
        "clean_interval": _interval(found.clean.logit_difference, names, seed),
        "corrupted_interval": _interval(-found.corrupted.logit_difference, names, seed),
    }
    bench.folder.write_json(TASK, record)


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """Return the score interval of a share (Wilson 1927), which holds at 0 and at 1 too.

    Args:
        share: The share of successes.
        n: The sample: pairs, for their two prompts are answered alike.
        z: Quantile of the normal distribution; 1.96 for 95%.
    """
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [max(0.0, float(middle - half)), min(1.0, float(middle + half))]


def _interval(
    values: Float[np.ndarray, " pair"], names: Sequence[str], seed: int
) -> list[float] | None:
    samples = sample_means(values.astype(float), names)
    if len(samples) < 2:
        return None
    found = item_interval(samples, resamples=RESAMPLES, seed=seed)
    return [found.low, found.high]


def run_reading(bench: PatchContext) -> None:
    """Read every layer by the logit lens, and what every component writes into the answer."""
    from saesteer.patching.reading.direct_attribution import direct_attribution
    from saesteer.patching.reading.lens import logit_lens

    settings = bench.plan.config.lens
    if settings is None:
        return
    if not has_table(bench.folder, LENS):
        bench.progress.say("Logit lens")
        with bench.leaving_out("logit lens"):
            found = logit_lens(
                bench.model,
                bench.batch,
                side=settings.side,
                every_position=settings.every_position,
                top_k=settings.top,
            )
            write_table(bench.folder, LENS, found.frame())
    if not has_table(bench.folder, DIRECT):
        bench.progress.say("Direct logit attribution")
        with bench.leaving_out("direct logit attribution"):
            shares = direct_attribution(bench.model, bench.batch, side=settings.side)
            write_table(bench.folder, DIRECT, shares.frame())


def has_table(folder: RunFolder, name: str) -> bool:
    """Return whether a table is there."""
    return folder.has(f"tables/{name}.parquet")


def write_table(folder: RunFolder, name: str, frame: pd.DataFrame) -> None:
    """Write a labelled table as Parquet."""
    folder.write(f"tables/{name}.parquet", lambda draft: frame.to_parquet(draft, index=False))


def strongest_rows(table: pd.DataFrame, most: int) -> Sequence[dict[str, Any]]:
    """Return the heads that write most into the logit difference: layer, head, share."""
    rows: Any = table[table["component"] == "head"]
    heads = rows.groupby(["layer", "head"])["share"].mean()
    order = np.argsort(-np.abs(heads.to_numpy()), kind="stable")[:most]
    return [
        {"layer": int(layer), "head": int(head), "share": float(share)}
        for (layer, head), share in heads.iloc[order].items()
    ]
