"""Which figures a patching run's results give, in the order in which a reader needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from saesteer.experiments.patch.reading import circuit_exhibits, reading_exhibits
from saesteer.experiments.patch.results import TO, Job, PatchResults
from saesteer.patching.agreement import Agreement, agreement
from saesteer.patching.result import PatchResult
from saesteer.patching.suggest import RESIDUAL
from saesteer.patching.summary import effects
from saesteer.report.patching_figures import (
    NAMES,
    Chart,
    Exhibit,
    Heatmap,
    Series,
    chart_of_effects,
    heatmap,
    layer_bars,
    one_prompt,
    scatter,
    unit_of,
)
from saesteer.report.reading import listing
from saesteer.utils.errors import SaesteerError

PROMPTS_SHOWN = 2
HEAD_DIMS = ("layer", "head")


def where_exhibits(run: PatchResults) -> Iterator[Exhibit]:
    """Return what shows in which layer and at which words: profiles and maps."""
    found = [job for job in run.results if "position" in run.results[job].dims[1:2]]
    exact = [job for job in found if job.method == "activation"]
    for job in exact:
        placed = run.placed(job)
        if placed is not None and job.component in RESIDUAL:
            yield Exhibit("where", f"profile-{job.name}", chart_of_effects([placed], run.scale))
    for job in exact:
        placed = run.placed(job)
        assert placed is not None
        yield Exhibit(
            "where", f"places-{job.name}", heatmap(placed, run.scale, seed=run.config.seed)
        )
    for job in exact:
        result = run.results[job]
        if _one_shape(result):
            yield Exhibit("where", job.name, heatmap(result, run.scale, seed=run.config.seed))
    for job in exact[:1]:
        result = run.results[job]
        gap = np.abs(result.clean - result.corrupted)
        for pair in np.argsort(-gap, kind="stable")[:PROMPTS_SHOWN].tolist():
            scale = "share" if run.scale == "share" else "change"
            yield Exhibit("where", f"prompt-{pair + 1}-{job.name}", one_prompt(result, pair, scale))


def _one_shape(result: PatchResult) -> bool:
    """Return whether all prompts are equally long, so that a column is the same place in all."""
    lengths = {sum(word != "" for word in row) for row in result.tokens}
    return len(lengths) == 1


def head_exhibits(run: PatchResults) -> Iterator[Exhibit]:
    """Return the maps of heads, by layer and head and by position."""
    for job, result in run.results.items():
        if result.dims[:2] != HEAD_DIMS or not _shown(run, job):
            continue
        if len(result.dims) == 2:
            yield Exhibit("heads", job.name, heatmap(result, run.scale, seed=run.config.seed))
        else:
            placed = run.placed(job)
            if placed is not None:
                yield Exhibit("heads", job.name, heatmap(placed, run.scale, seed=run.config.seed))


def _shown(run: PatchResults, job: Job) -> bool:
    """Return whether a map of heads is shown: the exact one, or the estimate where it is alone."""
    if job.method == "activation":
        return True
    exact = replace(job, method="activation")
    return job.method == "attribution" and exact not in run.results


def path_exhibits(run: PatchResults) -> Iterator[Exhibit]:
    """Return the maps of paths from every head or MLP."""
    for job, result in run.results.items():
        if job.method != "path":
            continue
        sender, receivers = job.component.split(TO)
        who = "head" if sender == "z" else "MLP"
        title = f"From every {who} to {_receivers(receivers)}, {job.mode}"
        if result.dims == HEAD_DIMS:
            shown = heatmap(result, run.scale, seed=run.config.seed)
            yield Exhibit("paths", job.name, shown._replace(title=title))
        else:
            bars = layer_bars(result, run.scale, seed=run.config.seed)
            yield Exhibit("paths", job.name, bars._replace(title=title))


def _receivers(names: str) -> str:
    if names == "final":
        return "the final residual stream"
    heads = [name.rsplit(".", 1) for name in names.split("+")]
    return listing([f"the {NAMES[kind]} of head {head}" for head, kind in heads])


def agreements(run: PatchResults) -> dict[str, tuple[Agreement, PatchResult]]:
    """Compare every approximation with activation patching of the same cells, by file name."""
    found = {}
    for job, result in run.results.items():
        exact = Job("activation", job.component, job.mode, job.by_position)
        if job.method in ("activation", "path") or exact not in run.results:
            continue
        try:
            # In the metric's units: a mean of shares hangs on the pairs of the smallest gap.
            one = agreement(result, run.results[exact], normalised=False)
        except SaesteerError:
            continue
        found[job.name] = (one, run.results[exact])
    return found


def agreement_exhibits(run: PatchResults) -> Iterator[Exhibit]:
    """Return the scatters of attribution against activation patching, one for each component."""
    found: dict[str, tuple[list[Agreement], PatchResult]] = {}
    for name, (one, exact) in agreements(run).items():
        cells = name.partition("-")[2]
        found.setdefault(cells, ([], exact))[0].append(one)
    for cells, (several, exact) in found.items():
        yield Exhibit("agreement", f"agreement-{cells}", scatter(several, exact))


def feature_exhibits(run: PatchResults) -> Iterator[Exhibit]:
    """Return the bars of an SAE's features and clusters, strongest first."""
    for job, result in run.results.items():
        if job.method == "activation" and result.dims in (("feature",), ("cluster",)):
            yield Exhibit("features", job.name, feature_bars(run, result))


def feature_bars(run: PatchResults, result: PatchResult) -> Chart:
    """Return features or clusters by effect, strongest first."""
    found = effects(result, run.scale, seed=run.config.seed)
    dim = result.dims[0]
    order = np.argsort(-np.nan_to_num(np.abs(found.value)), kind="stable")
    texts: dict[str, Any] = run.sae_record.get("descriptions", {}) if dim == "feature" else {}
    names = [str(result.coords[dim][place]) for place in order]
    labels = tuple(f"{name} {texts[name]}" if texts.get(name) else name for name in names)
    parts = (tuple(part[order].tolist()) for part in (found.value, found.low, found.high))
    return Chart(
        title=f"{dim.capitalize()}s of the SAE, {result.mode}",
        labels=labels,
        series=(Series(dim, *parts),),
        x_title=dim,
        y_title=unit_of(result, run.scale),
        bars=True,
    )


def shared_limit(exhibits: list[Exhibit]) -> list[Exhibit]:
    """Return the exhibits with one colour scale for the heatmaps of each part and unit."""
    largest: dict[tuple[str, str], float] = {}
    for one in exhibits:
        if isinstance(one.figure, Heatmap):
            known = np.abs(one.figure.values[np.isfinite(one.figure.values)])
            key = (one.part, one.figure.unit)
            largest[key] = max(largest.get(key, 0.0), float(known.max()) if known.size else 0.0)
    return [
        replace(one, limit=largest[one.part, one.figure.unit] or None)
        if isinstance(one.figure, Heatmap) and one.part == "where"
        else one
        for one in exhibits
    ]


def all_exhibits(run: PatchResults) -> list[Exhibit]:
    """Return every figure of a run, in the report's order."""
    makers = (
        where_exhibits,
        head_exhibits,
        agreement_exhibits,
        reading_exhibits,
        path_exhibits,
        feature_exhibits,
        circuit_exhibits,
    )
    return shared_limit([one for make in makers for one in make(run)])
