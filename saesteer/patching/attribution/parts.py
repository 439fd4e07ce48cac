"""Attribution over all pairs, as many at once as fit, whatever way the slopes are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor

from saesteer.models.sites import Site
from saesteer.models.tokens import input_device
from saesteer.patching.attribution.cells import (
    HEADS,
    PATTERN,
    SAE,
    Slopes,
    Wanted,
    cell_values,
    wanted,
)
from saesteer.patching.attribution.runs import (
    Ends,
    answer_logits,
    destination_words,
    ends_of,
    keeping,
    pairs_at_once,
    scores,
)
from saesteer.patching.components import BY_COLUMN, check_bridge_alike, check_there
from saesteer.patching.metrics import Metric
from saesteer.patching.prompts.batch import PairBatch
from saesteer.patching.result import Method, Mode, PatchResult, check_mode
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import Sae


class AttributionOptions(TypedDict, total=False):
    """What can be asked of attribution.

    Attributes:
        mode: "denoising" (the default) patches clean activations into the corrupted run, "noising"
            the other way.
        layers: The layers; all if None.
        by_position: Cells of heads, patterns (the query's position) and features by position too.
        sae: The SAE for the component "sae". A feature's patch changes the activation by the
            difference of its codes times its decoder row; the SAE's error stays.
        features: The features; all whose codes differ somewhere if None.
        clusters: Features to patch together, by label, instead of `features`.
        memory_gb: About how much memory the activations kept for a backward pass may take, 2 if
            not given; pairs that do not fit at once go through in parts.
        progress: Shows how far it is.
    """

    mode: Mode
    layers: Sequence[int] | None
    by_position: bool
    sae: Sae | None
    features: Sequence[int] | None
    clusters: Mapping[str, Sequence[int]] | None
    memory_gb: float
    progress: Progress | None


@dataclass(frozen=True)
class BothRuns:
    """The two unpatched runs.

    Attributes:
        ends: The prompts.
        source: The source's activations by site.
        destination: The destination's activations by site, with their graph if it was asked for.
        start: The destination's metric, with its graph if it was asked for, [pair].
        goal: The source's metric, [pair].
        clean: The clean prompts' logits, [pair, vocab].
    """

    ends: Ends
    source: Mapping[Site, Tensor]
    destination: Mapping[Site, Tensor]
    start: Tensor
    goal: Tensor
    clean: Tensor

    def slopes(self, slope: Mapping[Site, Tensor]) -> Slopes:
        """Return the runs with the metric's slope."""
        own = {site: value.detach() for site, value in self.destination.items()}
        return Slopes(self.ends, own, self.source, slope, self.start.detach(), self.goal)


def both_runs(
    model: TransformerBridge, ends: Ends, sites: Sequence[Site], metric: Metric, *, graph: bool
) -> BothRuns:
    """Run the source and the destination once each.

    Args:
        model: The model.
        ends: The prompts.
        sites: What to keep.
        metric: The metric.
        graph: Whether the destination's run keeps its graph; gradients must be on.
    """
    with torch.no_grad(), keeping(model, sites, graph=False) as source:
        there = answer_logits(model, ends.sides.source_ids, ends.sides.source_mask)
    with keeping(model, sites, graph=graph) as destination:
        here = answer_logits(model, ends.sides.ids, ends.sides.mask)
    clean = (there if ends.denoising else here).detach()
    start, goal = (
        scores(metric, logits, ends.right, ends.wrong, clean) for logits in (here, there)
    )
    return BothRuns(ends, source, destination, start, goal.detach(), clean)


def gradients_of(score: Tensor, at: Sequence[Tensor], metric: Metric) -> list[Tensor]:
    """Return the gradients of every row's score; 0 where it does not depend on the tensor.

    Raises:
        ConfigError: The metric is not differentiable.
    """
    if not score.requires_grad:
        raise ConfigError(
            f"metric {metric.name!r} has no gradient, so it cannot be attributed; use one that is "
            "smooth in the logits, such as logit_difference."
        )
    # Rows do not touch each other, so the sum's gradient is each row's own.
    found = torch.autograd.grad(score.sum(), list(at), allow_unused=True)
    return [
        torch.zeros_like(here) if gradient is None else gradient
        for here, gradient in zip(at, found, strict=True)
    ]


# From some of the pairs to the metric's slopes at the sites wanted.
FindSlopes = Callable[[Ends, Wanted], Slopes]


def attributed(
    model: TransformerBridge,
    batch: PairBatch,
    components: Sequence[str],
    metric: Metric,
    method: Method,
    find: FindSlopes,
    options: AttributionOptions,
) -> dict[str, PatchResult]:
    """Find the slopes of all pairs and return the components' results.

    Args:
        model: The model.
        batch: The pairs.
        components: What is attributed.
        metric: The metric.
        method: What the results are called.
        find: Finds the slopes of some of the pairs.
        options: What else is asked for.
    """
    given = dict(options)
    mode: Mode = options.get("mode", "denoising")
    progress = options.get("progress") or Progress()
    fits = pairs_at_once(model, max(1, batch.width), options.get("memory_gb", 2.0))
    cells = {key: given[key] for key in given if key not in ("mode", "memory_gb", "progress")}
    chosen = wanted(model, components, **cells)  # type: ignore[arg-type]
    check_mode(mode)
    check_bridge_alike(model, "attribution")
    for component in chosen.components:
        if component != SAE:
            check_there(model, component, chosen.layers)
    device = input_device(model.original_model)
    if not len(batch):
        raise DataError("there is no pair of prompts to attribute; give at least one.")
    values: dict[str, list[np.ndarray]] = {name: [] for name in chosen.components}
    scored: list[tuple[np.ndarray, np.ndarray]] = []
    with progress.task(method.replace("_", " "), len(batch), "pairs") as task:
        for first in range(0, len(batch), fits):
            part = ends_of(batch, mode, slice(first, first + fits), device)
            slopes = find(part, chosen)
            for name in chosen.components:
                found = cell_values(chosen, name, slopes, d_head=int(model.cfg.d_head))
                values[name].append(found)
            scored.append((_numbers(slopes.start), _numbers(slopes.goal)))
            task.advance(len(part.right))
    start, goal = (np.concatenate(each) for each in zip(*scored, strict=True))
    whole = {name: np.concatenate(each) for name, each in values.items()}
    return {
        name: _result(chosen, name, whole[name], start, goal, batch, mode, metric, method)
        for name in chosen.components
    }


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _result(
    chosen: Wanted,
    component: str,
    values: np.ndarray,
    start: np.ndarray,
    goal: np.ndarray,
    batch: PairBatch,
    mode: Mode,
    metric: Metric,
    method: Method,
) -> PatchResult:
    coords: dict[str, tuple[int | str, ...]]
    if component == SAE:
        values, coords = _feature_axis(chosen, values, start)
    else:
        coords = {"layer": chosen.layers}
        if component in (*HEADS, PATTERN):
            coords["head"] = tuple(range(values.shape[2]))
    words: tuple[tuple[str, ...], ...] = ()
    if component in BY_COLUMN or chosen.by_position:
        coords["position"] = tuple(range(batch.width))
        words = destination_words(batch, mode)
    clean, corrupted = (goal, start) if mode == "denoising" else (start, goal)
    names = tuple(pair.name or f"pair {i}" for i, pair in enumerate(batch.pairs, start=1))
    return PatchResult(
        method=method,
        component=component,
        mode=mode,
        metric=metric.name,
        dims=tuple(coords),
        coords=coords,
        values=values,
        clean=clean,
        corrupted=corrupted,
        pairs=names,
        tokens=words,
    )


def _feature_axis(
    chosen: Wanted, values: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, dict[str, tuple[int | str, ...]]]:
    assert chosen.sae is not None
    if chosen.sae.clusters is not None:
        return values, {"cluster": tuple(chosen.sae.clusters)}
    if chosen.sae.features is not None:
        return values, {"feature": chosen.sae.features}
    # Features whose codes are the same everywhere change nothing, and there are thousands.
    moved = np.abs(values - start.reshape(-1, *(1,) * (values.ndim - 1))) > 0
    alive = np.flatnonzero(moved.any(axis=tuple(i for i in range(values.ndim) if i != 1)))
    return values[:, alive], {"feature": tuple(int(f) for f in alive)}
