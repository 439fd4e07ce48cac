"""Which figures a patching run's results give, in the order in which a reader needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from saesteer.experiments.patch.results import CIRCUIT, DIRECT, LENS, TO, Job, PatchResults
from saesteer.patching.agreement import Agreement, agreement
from saesteer.patching.result import PatchResult
from saesteer.patching.suggest import RESIDUAL
from saesteer.report import Figure
from saesteer.report import patch_figures as made
from saesteer.report.wording import listing
from saesteer.utils.errors import SaesteerError

PROMPTS_SHOWN = 2
HEAD_DIMS = ("layer", "head")


def all_figures(run: PatchResults) -> dict[str, list[Figure]]:
    """Return every figure of a run by the part of the report that it belongs to."""
    return {
        "where": list(where_figures(run)),
        "heads": list(head_figures(run)),
        "agreement": list(agreement_figures(run)),
        "reading": list(reading_figures(run)),
        "paths": list(path_figures(run)),
        "features": list(feature_figures(run)),
        "circuit": list(circuit_figures(run)),
    }


def _map(run: PatchResults, name: str, result: PatchResult, **more: str) -> Figure:
    draw = partial(made.effect_map, result, run.scale, seed=run.config.seed, **more)
    return Figure(name, more.get("title", made.title_of(result)), draw)


def where_figures(run: PatchResults) -> Iterator[Figure]:
    """Return what shows in which layer and at which words: profiles and maps."""
    found = {
        job: result
        for job, result in run.results.items()
        if "position" in result.dims[1:2] and job.method == "activation"
    }
    placed = {job: run.placed(job) for job in found}
    for job, result in placed.items():
        assert result is not None
        if job.component in RESIDUAL:
            draw = partial(made.profile, result, run.scale)
            yield Figure(f"profile-{job.name}", made.title_of(result), draw)
    maps = [_map(run, f"places-{job.name}", result) for job, result in placed.items() if result]
    maps += [_map(run, job.name, result) for job, result in found.items() if _one_shape(result)]
    for job, result in list(found.items())[:1]:
        gap = np.abs(result.clean - result.corrupted)
        for pair in np.argsort(-gap, kind="stable")[:PROMPTS_SHOWN].tolist():
            scale = "share" if run.scale == "share" else "change"
            draw = partial(made.one_prompt, result, pair, scale)
            name = f"prompt-{pair + 1}-{job.name}"
            maps.append(Figure(name, made.prompt_title(result, pair), draw))
    # Shares of both modes are of one kind; so are changes.
    yield from (replace(one, colours=f"where-{one.name.rpartition('-')[2]}") for one in maps)


def _one_shape(result: PatchResult) -> bool:
    """Return whether all prompts are equally long, so that a column is the same place in all."""
    lengths = {sum(word != "" for word in row) for row in result.tokens}
    return len(lengths) == 1


def head_figures(run: PatchResults) -> Iterator[Figure]:
    """Return the maps of heads, by layer and head and by position."""
    for job, result in run.results.items():
        if result.dims[:2] != HEAD_DIMS or not _shown(run, job):
            continue
        shown = result if len(result.dims) == 2 else run.placed(job)
        if shown is not None:
            yield _map(run, job.name, shown)


def _shown(run: PatchResults, job: Job) -> bool:
    """Return whether a map of heads is shown: the exact one, or the estimate where it is alone."""
    if job.method == "activation":
        return True
    exact = replace(job, method="activation")
    return job.method == "attribution" and exact not in run.results


def path_figures(run: PatchResults) -> Iterator[Figure]:
    """Return the maps of paths from every head or MLP."""
    for job, result in run.results.items():
        if job.method != "path":
            continue
        sender, receivers = job.component.split(TO)
        who = "head" if sender == "z" else "MLP"
        title = f"From every {who} to {_receivers(receivers)}, {job.mode}"
        if result.dims == HEAD_DIMS:
            yield _map(run, job.name, result, title=title)
        else:
            more = {"title": title, "seed": run.config.seed}
            draw = partial(made.effect_bars, result, run.scale, **more)
            yield Figure(job.name, title, draw)


def _receivers(names: str) -> str:
    if names == "final":
        return "the final residual stream"
    heads = [name.rsplit(".", 1) for name in names.split("+")]
    return listing([f"the {made.NAMES[kind]} of head {head}" for head, kind in heads])


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


def agreement_figures(run: PatchResults) -> Iterator[Figure]:
    """Return the scatters of attribution against activation patching, one for each component."""
    found: dict[str, tuple[list[Agreement], PatchResult]] = {}
    for name, (one, exact) in agreements(run).items():
        cells = name.partition("-")[2]
        found.setdefault(cells, ([], exact))[0].append(one)
    for cells, (several, exact) in found.items():
        draw = partial(made.agreement_scatter, several, exact)
        yield Figure(f"agreement-{cells}", made.agreement_title(exact), draw)


def reading_figures(run: PatchResults) -> Iterator[Figure]:
    """Return the figures of the logit lens and of direct logit attribution."""
    lens, direct = run.table(LENS), run.table(DIRECT)
    if lens is not None:
        for name, title in made.LENS.items():
            yield Figure(name, title, partial(made.lens_figure, lens, name))
        if lens.loc[lens["pair"] == lens["pair"].iloc[0], "position"].nunique() > 1:
            yield Figure("lens-tokens", "Logit lens at every token", partial(made.lens_map, lens))
    if direct is not None:
        title = "Direct logit attribution by"
        yield Figure("direct-layers", f"{title} layer", partial(made.direct_layers, direct))
        yield Figure("direct-heads", f"{title} head", partial(made.direct_heads, direct))


def feature_figures(run: PatchResults) -> Iterator[Figure]:
    """Return the bars of an SAE's features and clusters, strongest first."""
    for job, result in run.results.items():
        if job.method != "activation" or result.dims not in (("feature",), ("cluster",)):
            continue
        dim = result.dims[0]
        words = run.sae_record.get("descriptions", {}) if dim == "feature" else {}
        title = f"{dim.capitalize()}s of the SAE, {result.mode}"
        more = {"title": title, "words": words, "seed": run.config.seed}
        yield Figure(job.name, title, partial(made.effect_bars, result, run.scale, **more))


def circuit_figures(run: PatchResults) -> Iterator[Figure]:
    """Return the map of the circuit's heads by what each is needed for."""
    if not run.folder.has(CIRCUIT):
        return
    record = run.folder.read_json(CIRCUIT)
    title = made.circuit_title(record)
    draw = partial(made.circuit_map, record, _shape(run, record), run.config.metric)
    yield Figure("circuit", title, draw)


def _shape(run: PatchResults, record: dict) -> tuple[int, int]:
    for result in run.results.values():
        if result.dims[:2] == HEAD_DIMS and result.component == "z":
            return len(result.coords["layer"]), len(result.coords["head"])
    layers = max((one["layer"] for one in record["minimality"]), default=0)
    heads = max((one["number"] for one in record["minimality"]), default=0)
    return layers + 1, heads + 1
