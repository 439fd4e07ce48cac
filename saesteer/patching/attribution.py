"""Attribution patching: every patch's effect to first order, from gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.forward import last_logits
from saesteer.models.hooks import hooked, keeping
from saesteer.models.sites import Site, bridge_target
from saesteer.models.tokens import input_device
from saesteer.patching.batch import Direction, Mode, PairBatch, direction_of
from saesteer.patching.engine.patches import at_columns, code_difference, pattern_at_columns
from saesteer.patching.engine.rows import Memory
from saesteer.patching.metrics import Metric, scores
from saesteer.patching.result import PatchResult
from saesteer.patching.target import (
    BY_COLUMN,
    BY_HEAD,
    Clusters,
    Target,
    check_bridge_alike,
)
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import Sae

INPUT = Site(0, "hook_resid_pre")
Line = Literal["inputs", "activations"]
Gradients = dict[Site, Tensor]


def attribution_patching(
    model: TransformerBridge,
    batch: PairBatch,
    components: Sequence[str],
    metric: Metric,
    *,
    method: Literal["attribution", "integrated_gradients"] = "attribution",
    steps: int = 5,
    line: Line = "inputs",
    mode: Mode = "denoising",
    layers: Sequence[int] | None = None,
    by_position: bool = False,
    sae: Sae | None = None,
    features: Sequence[int] | None = None,
    clusters: Clusters | None = None,
    memory_gb: float = 2.0,
    progress: Progress | None = None,
) -> dict[str, PatchResult]:
    """Return what patching every cell of the components does, to first order.

    The metric after a patch is m + g . (source - destination), with m the metric of the
    destination, unpatched, and g its gradient with respect to the activation (Nanda 2023,
    "Attribution Patching: Activation Patching At Industrial Scale"; Syed et al. 2023, "Attribution
    Patching Outperforms Automated Circuit Discovery"; Kramár et al. 2024, "AtP*").

    "attribution" takes the gradient at the destination: all components share one forward of the
    clean prompts, one of the corrupted ones and one backward. A metric that is flat there, as the
    divergence from the clean run is on the clean run, says nothing.

    "integrated_gradients" averages the gradient over points between the two runs, so that a
    saturated metric or softmax does not hide an effect (Sundararajan et al. 2017). The points are
    the middles of `steps` equal stretches, whose error falls with steps squared; positions without
    a counterpart stay as they are in the destination. Two lines lead from one run to the other:

    - "inputs" moves the first block's input, and all components read their gradients from the same
      passes: `steps` forwards and backwards in all. It is EAP-IG of Hanna et al. 2024, "Have Faith
      in Faithfulness", whose circuits were the more faithful ones, and the default.
    - "activations" moves one component of one layer at a time (Marks et al. 2024, "Sparse Feature
      Circuits"): `steps` forwards and backwards for every layer of every component. Its cells of a
      layer sum to the effect of patching them all together.

    All else is as in `activation_patching`.

    Args:
        model: A model from `load_model`.
        batch: The pairs.
        components: Any of those of `activation_patching`, in one go.
        metric: What is measured; differentiable.
        method: Which gradient.
        steps: How many points integrated gradients average over.
        line: Which way leads from one run to the other.
        memory_gb: About how much memory the activations kept for a backward pass may take.

    Returns:
        A result for each component, its values on the scale of activation patching's.

    Raises:
        ConfigError: A component, layer, feature, mode or line does not exist, `steps` is below 1,
            or the metric has no gradient.
        DataError: There is no pair.
        SiteError: The model has no such component, or its bridge computes another model.
    """
    if method not in ("attribution", "integrated_gradients"):
        raise ConfigError(f"method: {method!r} is no attribution; use 'integrated_gradients'.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps: {steps!r} is no number of points; give 1 or more, such as 5.")
    if line not in ("inputs", "activations"):
        raise ConfigError(f"line: {line!r} is neither 'inputs' nor 'activations'; choose one.")
    if not components:
        raise ConfigError("components: there is none to attribute; give one such as resid_pre.")
    direction_of(batch, mode)
    pairs = Memory(model, batch.width, memory_gb).pairs_with_graph()
    targets = [
        Target.of(model, name, sae=sae, features=features, clusters=clusters)
        if name == "sae"
        else Target.of(model, name, layers=layers)
        for name in dict.fromkeys(components)
    ]
    check_bridge_alike(model, "attribution")
    device = input_device(model.original_model)
    values: dict[str, list[np.ndarray]] = {target.component: [] for target in targets}
    ends: list[tuple[np.ndarray, np.ndarray]] = []
    shown = (progress or Progress()).task(method.replace("_", " "), len(batch), "pairs")
    with shown as task, torch.inference_mode(False):
        for first in range(0, len(batch), pairs):
            direction = direction_of(batch, mode, slice(first, first + pairs), device)
            runs = _BothRuns(model, direction, targets, metric, graph=method == "attribution")
            if method == "attribution":
                slopes = runs.slopes()
            elif line == "inputs":
                slopes = runs.slopes_along_inputs(steps)
            else:
                slopes = runs.slopes_along_activations(steps)
            for target in targets:
                values[target.component].append(_cells(runs, target, slopes, by_position))
            ends.append((_numbers(runs.start), _numbers(runs.goal)))
            task.advance(len(direction))
    own, source = (np.concatenate(side) for side in zip(*ends, strict=True))
    found = {}
    for target in targets:
        cells = np.concatenate(values[target.component])
        coords: dict[str, tuple[int | str, ...]] = {"layer": target.layers}
        if target.has_heads:
            coords["head"] = tuple(range(cells.shape[2]))
        elif target.sae is not None:
            coords, cells = _feature_axis(target, cells, own)
        if target.component in BY_COLUMN or by_position:
            coords["position"] = tuple(range(batch.width))
        found[target.component] = PatchResult.of(
            batch, method, target.component, metric.name, mode, coords, cells, (own, source)
        )
    return found


class _BothRuns:
    """The two unpatched runs of some pairs, and the metric's slopes between them."""

    def __init__(
        self,
        model: TransformerBridge,
        direction: Direction,
        targets: Sequence[Target],
        metric: Metric,
        *,
        graph: bool,
    ) -> None:
        self._model, self.direction, self._metric = model, direction, metric
        self.d_head = int(model.cfg.d_head)
        # Every site whose gradient is needed, and those that are read besides.
        self._sites = tuple(dict.fromkeys(site for one in targets for site in one.sites))
        read = [one.sae.site for one in targets if one.sae is not None]
        every = dict.fromkeys((*self._sites, *read, INPUT))
        self._points = {site: bridge_target(model, site) for site in every}
        with torch.no_grad(), keeping(self._points) as source:
            there = self._logits(direction.source_ids, direction.source_mask)
        self.source: Mapping[Site, Tensor] = source
        with self._differentiable(graph), keeping(self._points, keep=_itself) as destination:
            here = self._logits(direction.ids, direction.mask)
        self._graph = destination
        self.destination = {site: value.detach() for site, value in destination.items()}
        self._clean = (there if direction.mode == "denoising" else here).detach()
        with torch.set_grad_enabled(graph):
            self.start = self._score(here)
        self.goal = self._score(there).detach()

    def change(self, site: Site) -> Float[Tensor, "pair pos ..."]:
        """Return source less destination at the destination's columns, 0 where none stands.

        Of attention patterns: a query with a counterpart takes its counterpart's row: the attention
        to keys that have a counterpart, and none to the others. One without keeps its own.
        """
        to_source, allowed = self.direction.to_source, self.direction.allowed
        own, source = self.destination[site].float(), self.source[site].float()
        if site.hook.endswith("hook_pattern"):
            both = pattern_at_columns(source, to_source) - own
            return torch.where(allowed[:, None, :, None], both, 0.0)
        both = at_columns(source, to_source) - own
        return torch.where(allowed[:, :, None], both, 0.0)

    def slopes(self) -> Gradients:
        """Return the metric's gradients at the destination."""
        return self._gradients(self.start, {site: self._graph[site] for site in self._sites})

    def slopes_along_inputs(self, steps: int) -> Gradients:
        """Return the gradients averaged while the first block's input moves to the source's."""
        change = self.change(INPUT)
        total = {site: torch.zeros_like(self.destination[site]) for site in self._sites}
        sites = {site: self._points[site] for site in self._sites}
        for point in _points(steps):

            def moved(hidden: Tensor, point: float = point) -> Tensor:
                return (hidden + point * change.to(hidden.dtype)).detach().requires_grad_(True)

            # Moved before it is kept, where gradients of the input itself are asked for.
            with torch.enable_grad(), hooked([(self._points[INPUT], moved)]):
                with keeping(sites, keep=_itself) as kept:
                    score = self._rescored()
                for site, gradient in self._gradients(score, kept).items():
                    total[site] += gradient / steps
        return total

    def slopes_along_activations(self, steps: int) -> Gradients:
        """Return the gradients averaged while one site at a time moves to the source's."""
        total = {}
        for site in self._sites:
            change = self.change(site).to(self.destination[site].dtype)
            total[site] = torch.zeros_like(change)
            for point in _points(steps):
                zero = torch.zeros_like(change, requires_grad=True)
                with torch.enable_grad(), self._adding(site, point * change + zero):
                    score = self._rescored()
                total[site] += self._gradients(score, {site: zero})[site] / steps
        return total

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        return last_logits(self._model.original_model, ids, mask).float()

    def _score(self, logits: Tensor) -> Tensor:
        return scores(self._metric, logits, self.direction.answers, self._clean)

    def _rescored(self) -> Tensor:
        return self._score(self._logits(self.direction.ids, self.direction.mask))

    @contextmanager
    def _differentiable(self, graph: bool) -> Iterator[None]:
        """Let gradients be taken of everything from the first block's input on, or of nothing."""
        if not graph:
            with torch.no_grad():
                yield
            return

        def leaf(hidden: Tensor) -> Tensor:
            return hidden.detach().requires_grad_(True)

        with torch.enable_grad(), hooked([(self._points[INPUT], leaf)]):
            yield

    @contextmanager
    def _adding(self, site: Site, change: Tensor) -> Iterator[None]:
        """Add a change to the activation at a site."""
        places = [self._points[site]]
        if site.hook == "hook_resid_mid":
            # The MLP alone reads it from here: the residual stream runs past it.
            places.append(bridge_target(self._model, Site(site.layer, "hook_resid_post")))
        with hooked((place, lambda hidden: hidden + change) for place in places):
            yield

    def _gradients(self, score: Tensor, at: Mapping[Site, Tensor]) -> Gradients:
        """Return the gradients of every row's score; 0 where it does not depend on the tensor."""
        if not score.requires_grad:
            raise ConfigError(
                f"metric {self._metric.name!r} has no gradient, so it cannot be attributed; use "
                "one that is smooth in the logits, such as logit_difference."
            )
        # Rows do not touch each other, so the sum's gradient is each row's own.
        found = torch.autograd.grad(score.sum(), list(at.values()), allow_unused=True)
        return {
            site: torch.zeros_like(here) if gradient is None else gradient
            for (site, here), gradient in zip(at.items(), found, strict=True)
        }


def _points(steps: int) -> list[float]:
    return [(step + 0.5) / steps for step in range(steps)]


def _itself(hidden: Tensor) -> Tensor:
    return hidden


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _cells(
    runs: _BothRuns, target: Target, slopes: Gradients, by_position: bool
) -> Float[np.ndarray, "pair ..."]:
    """Return the first-order value of the metric for every cell of a target.

    [pair, layer, position], [pair, layer, head(, position)] or [pair, feature(, position)]; NaN at
    positions that cannot be patched.
    """
    if target.sae is not None:
        found = _feature_products(runs, target, target.sae, slopes[target.sae.write_site])
    else:
        found = torch.stack(
            [_products(runs, target, site, slopes[site]) for site in target.sites], dim=1
        )
    if target.component not in BY_COLUMN and not by_position:
        found = found.sum(dim=-1)
    else:
        allowed = runs.direction.allowed
        there = allowed.reshape(len(found), *(1,) * (found.ndim - 2), found.shape[-1])
        found = torch.where(there, found, float("nan"))
    start = runs.start.detach().reshape(-1, *(1,) * (found.ndim - 1))
    return _numbers(start + found)


def _products(runs: _BothRuns, target: Target, site: Site, slope: Tensor) -> Tensor:
    """Return slope times change by [pair, position] or [pair, head, position]."""
    products = slope.float() * runs.change(site)
    if target.component not in BY_HEAD or target.component == "pattern":
        return products.sum(dim=-1)
    return products.unflatten(-1, (-1, runs.d_head)).sum(dim=-1).transpose(1, 2)


def _feature_products(
    runs: _BothRuns, target: Target, sae: Sae, slope: Tensor
) -> Float[Tensor, "pair feature pos"]:
    read = (runs.source[sae.site].flatten(2), runs.destination[sae.site].flatten(2))
    change = code_difference(sae, *read, runs.direction)
    slope = slope.flatten(2).float()
    decoder = sae.decoder.to(slope.device)
    if target.features is not None:
        change, decoder = change[..., list(target.features)], decoder[list(target.features)]
    products = change * (slope @ decoder.T)
    if target.clusters is not None:
        groups = [list(dict.fromkeys(group)) for group in target.clusters.values()]
        products = torch.stack([products[..., group].sum(dim=-1) for group in groups], dim=-1)
    return products.transpose(1, 2)


def _feature_axis(
    target: Target, values: np.ndarray, start: np.ndarray
) -> tuple[dict[str, tuple[int | str, ...]], np.ndarray]:
    if target.clusters is not None:
        return {"cluster": tuple(target.clusters)}, values
    if target.features is not None:
        return {"feature": target.features}, values
    # Features whose codes are the same everywhere change nothing, and there are thousands.
    moved = np.abs(values - start.reshape(-1, *(1,) * (values.ndim - 1))) > 0
    alive = np.flatnonzero(moved.any(axis=tuple(i for i in range(values.ndim) if i != 1)))
    return {"feature": tuple(int(f) for f in alive)}, values[:, alive]
