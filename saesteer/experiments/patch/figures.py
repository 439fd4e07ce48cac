"""Which figures a patching run's results give, in the order in which a reader needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from saesteer.experiments.patch.results import DIRECT, LENS, TO, PatchResults
from saesteer.patching.result import PatchResult
from saesteer.patching.suggest import SUGGESTED
from saesteer.patching.summary import Agreement
from saesteer.report import Figure
from saesteer.report import patch_figures as made
from saesteer.report.wording import listing

PROMPTS_SHOWN = 2
HEAD_DIMS = ("layer", "head")


def all_figures(run: PatchResults) -> dict[str, list[Figure]]:
    """Every figure of a run by the part of the report that it belongs to."""
    lens, direct = run.table(LENS), run.table(DIRECT)
    reading = [] if lens is None else made.lens_figures(lens)
    reading += [] if direct is None else made.direct_figures(direct)
    return {
        "where": list(_where(run)),
        "heads": list(_heads(run)),
        "agreement": list(_agreement(run)),
        "reading": reading,
        "paths": list(_paths(run)),
        "features": list(_features(run)),
        "circuit": list(_circuit(run)),
    }


def _where(run: PatchResults) -> Iterator[Figure]:
    """What shows in which layer and at which words: profiles and maps."""
    seed = run.config.seed
    found = {
        job: result
        for job, result in run.results.items()
        if "position" in result.dims[1:2] and job.method == "activation"
    }
    maps = []
    for job in found:
        result = run.placed(job)
        if job.component in SUGGESTED:
            yield made.profile(f"profile-{job.name}", result, run.scale)
        maps.append(made.effect_map(f"places-{job.name}", result, run.scale, seed=seed))
    for job, result in found.items():
        # Where all prompts are equally long a column is the same place in all.
        if len({sum(word != "" for word in row) for row in result.tokens}) == 1:
            maps.append(made.effect_map(job.name, result, run.scale, seed=seed))
    for job, result in list(found.items())[:1]:
        gap = np.abs(result.clean - result.corrupted)
        for pair in np.argsort(-gap, kind="stable")[:PROMPTS_SHOWN].tolist():
            name = f"prompt-{pair + 1}-{job.name}"
            maps.append(made.one_prompt(name, result, pair, run.scale))
    # Shares of both modes are of one kind; so are changes.
    yield from (replace(one, colours=f"where-{one.name.rpartition('-')[2]}") for one in maps)


def _heads(run: PatchResults) -> Iterator[Figure]:
    """The maps of heads: the exact one, or the estimate where it is alone."""
    for job, result in run.results.items():
        estimate = job.method == "attribution" and job.exact not in run.results
        if result.dims[:2] == HEAD_DIMS and (job.method == "activation" or estimate):
            shown = result if len(result.dims) == 2 else run.placed(job)
            yield made.effect_map(job.name, shown, run.scale, seed=run.config.seed)


def _paths(run: PatchResults) -> Iterator[Figure]:
    for job, result in run.results.items():
        if job.method == "path":
            sender, names = job.component.split(TO)
            heads = [name.rsplit(".", 1) for name in names.split("+") if name != "final"]
            receivers = listing([f"the {made.NAMES[kind]} of head {head}" for head, kind in heads])
            who = "head" if sender == "z" else "MLP"
            title = f"From every {who} to {receivers or 'the final residual stream'}, {job.mode}"
            draw = made.effect_map if result.dims == HEAD_DIMS else made.effect_bars
            yield draw(job.name, result, run.scale, title=title, seed=run.config.seed)


def _agreement(run: PatchResults) -> Iterator[Figure]:
    """The scatters of attribution against activation patching, one for each component."""
    found: dict[str, tuple[list[Agreement], PatchResult]] = {}
    for job, one in run.agreements.items():
        cells = job.name.partition("-")[2]
        found.setdefault(cells, ([], run.results[job.exact]))[0].append(one)
    for cells, (several, exact) in found.items():
        yield made.agreement_scatter(f"agreement-{cells}", several, exact)


def _features(run: PatchResults) -> Iterator[Figure]:
    """The bars of an SAE's features and clusters, strongest first."""
    for job, result in run.results.items():
        if job.method == "activation" and result.dims in (("feature",), ("cluster",)):
            dim = result.dims[0]
            words = run.sae_record.get("descriptions", {}) if dim == "feature" else {}
            title = f"{dim.capitalize()}s of the SAE, {result.mode}"
            more = {"title": title, "words": words, "seed": run.config.seed}
            yield made.effect_bars(job.name, result, run.scale, **more)


def _circuit(run: PatchResults) -> Iterator[Figure]:
    if run.circuit is None:
        return
    heads = run.circuit["minimality"]
    last = [max((one[key] for one in heads), default=0) for key in ("layer", "number")]
    shapes = [
        (len(result.coords["layer"]), len(result.coords["head"]))
        for result in run.results.values()
        if result.dims[:2] == HEAD_DIMS and result.component == "z"
    ]
    shape = shapes[0] if shapes else (last[0] + 1, last[1] + 1)
    yield made.circuit_map(run.circuit, shape, run.config.metric)
