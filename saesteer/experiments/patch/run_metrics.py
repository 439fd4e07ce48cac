"""The numbers of a patching run, as `metrics.json` holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.patch.exhibits import agreements
from saesteer.experiments.patch.results import CIRCUIT, DIRECT, PatchResults
from saesteer.experiments.patch.stages import strongest_rows
from saesteer.patching.suggest import RESIDUAL
from saesteer.patching.summary import sample_means
from saesteer.report.patch_figures import strongest_cells

MOST = 10
HARDLY, MOSTLY = 0.5, 0.8


def run_metrics(run: PatchResults, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything a report says in numbers."""
    config = run.config
    clean, corrupted = run.ends
    names = [row["name"] for row in run.pairs]
    record: dict[str, Any] = {
        "name": config.name,
        "model": config.model.name,
        "sae": config.sae,
        "sae_site": None if run.sae_site is None else str(run.sae_site),
        "source": config.pairs.source or "ioi",
        "pairs": len(run.pairs),
        "metric": config.metric,
        "modes": list(config.modes),
        "task": run.task,
        "verdict": verdict(run.task),
        "scale": run.scale,
        "clean": _with_interval(clean, names, config.seed),
        "corrupted": _with_interval(corrupted, names, config.seed),
        "strongest": _strongest(run),
        "left_out": list(left_out),
        "agreement": {name: one.numbers() for name, (one, _) in agreements(run).items()},
    }
    direct = run.table(DIRECT)
    if direct is not None:
        record["direct_heads"] = strongest_rows(direct, MOST)
    if any(job.method == "activation" and job.component in RESIDUAL for job in run.results):
        record["suggestion"] = run.suggestion().record()
    if run.folder.has(CIRCUIT):
        record["circuit"] = run.folder.read_json(CIRCUIT)
    return record


def verdict(task: dict[str, Any]) -> str:
    """Return whether the model solves the task: "solved", "partly", "unclear" or "not".

    It is unclear where the interval of its accuracy holds one half: two answers, chosen by a coin.
    """
    if task["accuracy"] <= HARDLY:
        return "not"
    if task["accuracy_interval"][0] <= HARDLY:
        return "unclear"
    return "solved" if task["accuracy"] >= MOSTLY else "partly"


def _with_interval(values: np.ndarray, names: Sequence[str], seed: int) -> dict[str, float | None]:
    known = sample_means(values.astype(float), names)
    known = known[np.isfinite(known)]
    if not len(known):
        return {"value": None, "low": None, "high": None}
    if len(known) == 1:
        return {"value": float(known[0]), "low": None, "high": None}
    found = item_interval(known, resamples=2000, seed=seed)
    return {"value": found.mean, "low": found.low, "high": found.high}


def _strongest(run: PatchResults) -> dict[str, Any]:
    kept = {}
    for job, result in run.results.items():
        if job.method not in ("activation", "path"):
            continue
        shown = run.placed(job) if "position" in result.dims else result
        if shown is not None:
            kept[job.name] = strongest_cells(
                shown, run.scale, MOST, resamples=run.config.resamples, seed=run.config.seed
            )
    return kept
