"""Attribution with the gradient averaged on the way from one run to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from torch import Tensor

from saesteer.models.sites import Site
from saesteer.patching.attribution.cells import Slopes, Wanted, pattern_change
from saesteer.patching.attribution.parts import (
    AttributionOptions,
    BothRuns,
    attributed,
    both_runs,
    gradients_of,
)
from saesteer.patching.attribution.runs import (
    INPUT,
    Ends,
    adding,
    answer_logits,
    keeping,
    replacing,
    scores,
)
from saesteer.patching.metrics import Metric
from saesteer.patching.prompts.batch import PairBatch
from saesteer.patching.result import PatchResult
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Line = Literal["inputs", "activations"]


def integrated_gradients(
    model: TransformerBridge,
    batch: PairBatch,
    component: str,
    metric: Metric,
    *,
    steps: int = 5,
    line: Line = "inputs",
    **options: Unpack[AttributionOptions],
) -> PatchResult:
    """Return what patching every cell of one component does, by integrated gradients.

    As `integrated_gradients_all`, for one component.
    """
    found = integrated_gradients_all(
        model, batch, (component,), metric, steps=steps, line=line, **options
    )
    return found[component]


def integrated_gradients_all(
    model: TransformerBridge,
    batch: PairBatch,
    components: Sequence[str],
    metric: Metric,
    *,
    steps: int = 5,
    line: Line = "inputs",
    **options: Unpack[AttributionOptions],
) -> dict[str, PatchResult]:
    """Return what patching every cell of the components does, by integrated gradients.

    As attribution patching, with the gradient averaged over points between the two runs in place
    of the one at the destination, so that a saturated metric or softmax does not hide an effect
    (Sundararajan et al. 2017). Two lines lead from one run to the other:

    - "inputs" moves the first block's input from the destination's to the source's, and all
      components read their gradients from the same passes: `steps` forwards and backwards in all.
      It is EAP-IG of Hanna et al. 2024, "Have Faith in Faithfulness", whose circuits were the more
      faithful ones, and the default.
    - "activations" moves one component of one layer at a time (Marks et al. 2024, "Sparse Feature
      Circuits"): `steps` forwards and backwards for every layer of every component. Its cells of a
      layer sum to the effect of patching them all together.

    The points are the middles of `steps` equal stretches, whose error falls with steps squared.
    Positions without a counterpart stay as they are in the destination.

    Args:
        model: A model from `load_model`.
        batch: The pairs.
        components: As in `attribution_patching_all`.
        metric: What is measured; it may be flat at the destination.
        steps: How many points the gradient is averaged over.
        line: Which way leads from one run to the other.
        **options: See `AttributionOptions`.

    Returns:
        A result for each component, its values on the scale of activation patching's.

    Raises:
        ConfigError: As in `attribution_patching_all`, or `steps` is below 1 or there is no such
            line.
        DataError: There is no pair.
        SiteError: The model has no such component.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps: {steps!r} is no number of points; give 1 or more, such as 5.")
    if line not in ("inputs", "activations"):
        raise ConfigError(f"line: {line!r} is neither 'inputs' nor 'activations'; choose one.")
    points = [(step + 0.5) / steps for step in range(steps)]

    def find(ends: Ends, wanted: Wanted) -> Slopes:
        along = _along_inputs if line == "inputs" else _along_activations
        with torch.inference_mode(False), torch.no_grad():
            runs = both_runs(model, ends, (INPUT, *wanted.read_at), metric, graph=False)
        with torch.inference_mode(False), torch.enable_grad():
            return runs.slopes(along(model, runs, wanted, metric, points))

    return attributed(model, batch, components, metric, "integrated_gradients", find, options)


def _along_inputs(
    model: TransformerBridge,
    runs: BothRuns,
    wanted: Wanted,
    metric: Metric,
    points: Sequence[float],
) -> dict[Site, Tensor]:
    change = runs.slopes({}).change(INPUT)
    total = {site: torch.zeros_like(runs.destination[site]) for site in wanted.gradients_at}
    for point in points:

        def moved(hidden: Tensor, point: float = point) -> Tensor:
            return (hidden + point * change.to(hidden.dtype)).detach().requires_grad_(True)

        with replacing(model, INPUT, moved):
            found = _gradients(model, runs, wanted.gradients_at, metric)
        for site, gradient in found.items():
            total[site] += gradient / len(points)
    return total


def _along_activations(
    model: TransformerBridge,
    runs: BothRuns,
    wanted: Wanted,
    metric: Metric,
    points: Sequence[float],
) -> dict[Site, Tensor]:
    total = {}
    for site in wanted.gradients_at:
        change = _change(runs, site).to(runs.destination[site].dtype)
        total[site] = torch.zeros_like(change)
        for point in points:
            zero = torch.zeros_like(change, requires_grad=True)
            with adding(model, site, point * change + zero):
                score = _score(model, runs, metric)
            total[site] += gradients_of(score, [zero], metric)[0] / len(points)
    return total


def _change(runs: BothRuns, site: Site) -> Tensor:
    both = runs.slopes({})
    if site.hook.endswith("hook_pattern"):
        return pattern_change(runs.ends, both.source[site], both.destination[site])
    return both.change(site)


def _gradients(
    model: TransformerBridge, runs: BothRuns, sites: Sequence[Site], metric: Metric
) -> dict[Site, Tensor]:
    with keeping(model, sites, graph=True) as kept:
        score = _score(model, runs, metric)
    found = gradients_of(score, [kept[site] for site in sites], metric)
    return dict(zip(sites, found, strict=True))


def _score(model: TransformerBridge, runs: BothRuns, metric: Metric) -> Tensor:
    ends = runs.ends
    logits = answer_logits(model, ends.sides.ids, ends.sides.mask)
    return scores(metric, logits, ends.right, ends.wrong, runs.clean)
