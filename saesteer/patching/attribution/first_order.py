"""Attribution patching: every patch's effect to first order, from one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from saesteer.patching.attribution.cells import Slopes, Wanted
from saesteer.patching.attribution.parts import (
    AttributionOptions,
    attributed,
    both_runs,
    gradients_of,
)
from saesteer.patching.attribution.runs import Ends, differentiable
from saesteer.patching.metrics import Metric
from saesteer.patching.prompts.batch import PairBatch
from saesteer.patching.result import PatchResult

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def attribution_patching(
    model: TransformerBridge,
    batch: PairBatch,
    component: str,
    metric: Metric,
    **options: Unpack[AttributionOptions],
) -> PatchResult:
    """Return what patching every cell of one component does, to first order.

    As `attribution_patching_all`, for one component.
    """
    return attribution_patching_all(model, batch, (component,), metric, **options)[component]


def attribution_patching_all(
    model: TransformerBridge,
    batch: PairBatch,
    components: Sequence[str],
    metric: Metric,
    **options: Unpack[AttributionOptions],
) -> dict[str, PatchResult]:
    """Return what patching every cell of the components does, to first order.

    The metric after a patch is m + g . (source - destination), with m the metric of the
    destination, unpatched, and g its gradient there with respect to the activation (Nanda 2023,
    "Attribution Patching: Activation Patching At Industrial Scale"; Syed et al. 2023, "Attribution
    Patching Outperforms Automated Circuit Discovery"). All components share one forward of the
    clean prompts, one forward of the corrupted ones and one backward.

    A metric that is flat at the destination says nothing: the divergence from the clean run has
    no slope on the clean run, so noising with it needs `integrated_gradients`.

    Args:
        model: A model from `load_model`.
        batch: The pairs.
        components: Any of resid_pre, resid_mid, resid_post, attn_out, mlp_out (by layer and
            position), z, q, k, v, pattern (by layer and head) and sae (by feature).
        metric: What is measured.
        **options: See `AttributionOptions`.

    Returns:
        A result for each component, its values on the scale of activation patching's.

    Raises:
        ConfigError: A component, layer, feature or mode does not exist, or the memory is not
            above 0.
        DataError: There is no pair.
        SiteError: The model has no such component.

    Example:
        >>> found = attribution_patching_all(
        ...     model, batch, ("resid_pre", "z"), metric_named("logit_difference")
        ... )  # doctest: +SKIP
        >>> found["z"].mean().shape  # doctest: +SKIP
        (30, 9)
    """

    def find(ends: Ends, wanted: Wanted) -> Slopes:
        with differentiable(model):
            runs = both_runs(model, ends, wanted.read_at, metric, graph=True)
            at = [runs.destination[site] for site in wanted.gradients_at]
            found = gradients_of(runs.start, at, metric)
        return runs.slopes(dict(zip(wanted.gradients_at, found, strict=True)))

    return attributed(model, batch, components, metric, "attribution", find, options)
