"""Choose the features that fire sparsely and differ between the sides of the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from saesteer.methods.features.codes import PairCodes
from saesteer.methods.features.criteria import CRITERIA, Criterion
from saesteer.methods.features.registry import choose
from saesteer.utils.errors import ConfigError, DataError, MismatchError


@dataclass(frozen=True, eq=False)
class FeatureSelection:
    """The chosen features, strongest first.

    Attributes:
        indices: `[feature]` SAE indices, by descending |score|, then ascending index.
        scores: `[feature]` the criterion's signed scores.
        criterion: The criterion's name.
        n_candidates: How many features passed every filter, before the cut at `n_features`.
        firing_positive: `[feature]` share of positive sides on which each fires.
        firing_negative: `[feature]` share of negative sides on which each fires.
        removed: How many features each filter took away, in the order of the filters.
    """

    indices: Int[np.ndarray, " feature"]
    scores: Float[np.ndarray, " feature"]
    criterion: str
    n_candidates: int
    firing_positive: Float[np.ndarray, " feature"]
    firing_negative: Float[np.ndarray, " feature"]
    removed: Mapping[str, int]

    def __len__(self) -> int:
        return int(self.indices.size)

    @property
    def signs(self) -> Float[np.ndarray, " feature"]:
        """+1 for a feature of the positive side, -1 for one of the negative side."""
        return np.sign(self.scores)


def select_features(
    codes: PairCodes,
    *,
    criterion: str | Criterion = "standardised_difference",
    n_features: int = 64,
    min_firing: float = 0.02,
    max_firing: float = 0.6,
    density: Float[np.ndarray, " d_sae"] | None = None,
    max_density: float | None = None,
    min_abs_score: float = 0.0,
) -> FeatureSelection:
    """Choose the features that fire sparsely and differ most between the sides.

    Args:
        codes: Activations of both sides.
        criterion: A name in `CRITERIA`, or a function of the same kind, such as
            `functools.partial(per_prompt_top_n, n=5)`.
        n_features: How many to keep at most.
        min_firing: Least share of all sides (texts) on which a feature must fire, 0 to 1. A
            feature that fires on none is never chosen.
        max_firing: Greatest share of all sides on which it may fire, 0 to 1.
        density: `[d_sae]` share of a corpus' tokens on which each feature fires, as in the
            SAE's feature table.
        max_density: Greatest density allowed; needs `density`.
        min_abs_score: Least |score| to be chosen, in the criterion's unit. A score of exactly
            zero is never chosen.

    Returns:
        The chosen features, by descending |score|, then ascending index.

    Raises:
        ConfigError: The criterion is unknown or a number is out of range.
        DataError: The filters leave no feature (the sentence says which took how many), or the
            scores or densities are not finite.
        MismatchError: `density` or the scores have another length than the SAE has features.
    """
    _check_settings(n_features, min_firing, max_firing, max_density, min_abs_score)
    score, name = _resolve(criterion)
    rate = codes.firing
    filters: list[tuple[str, Bool[np.ndarray, " d_sae"]]] = [
        ("never fires", rate > 0),
        (f"fires on less than min_firing={min_firing:g}", rate >= min_firing),
        (f"fires on more than max_firing={max_firing:g}", rate <= max_firing),
    ]
    if max_density is not None:
        limits = _checked_density(density, codes.d_sae)
        filters.append((f"denser than max_density={max_density:g}", limits <= max_density))
    scores = _checked_scores(score(codes), codes.d_sae, name)
    filters.append(("does not differ between the sides", scores != 0))
    if min_abs_score > 0:
        filters.append(
            (f"|score| below min_abs_score={min_abs_score:g}", np.abs(scores) >= min_abs_score)
        )
    left, removed = _apply(filters)
    candidates = np.flatnonzero(left)
    if candidates.size == 0:
        taken = "; ".join(f"{reason}: {count}" for reason, count in removed.items() if count)
        raise DataError(
            f"select_features: none of the {codes.d_sae} features is left ({taken}); widen "
            "min_firing, max_firing, max_density or min_abs_score, or give more pairs."
        )
    order = np.lexsort((candidates, -np.abs(scores[candidates])))[:n_features]
    indices = candidates[order]
    return FeatureSelection(
        indices=indices,
        scores=scores[indices],
        criterion=name,
        n_candidates=int(candidates.size),
        firing_positive=codes.firing_positive[indices],
        firing_negative=codes.firing_negative[indices],
        removed=removed,
    )


def _apply(
    filters: list[tuple[str, Bool[np.ndarray, " d_sae"]]],
) -> tuple[Bool[np.ndarray, " d_sae"], dict[str, int]]:
    left = np.ones_like(filters[0][1])
    removed: dict[str, int] = {}
    for reason, passes in filters:
        removed[reason] = int((left & ~passes).sum())
        left &= passes
    return left, removed


def _resolve(criterion: str | Criterion) -> tuple[Criterion, str]:
    if isinstance(criterion, str):
        return choose(CRITERIA, criterion, field="criterion"), criterion
    function = criterion.func if isinstance(criterion, partial) else criterion
    return criterion, getattr(function, "__name__", type(function).__name__)


def _check_settings(
    n_features: int,
    min_firing: float,
    max_firing: float,
    max_density: float | None,
    min_abs_score: float,
) -> None:
    if n_features < 1:
        raise ConfigError(f"n_features: {n_features} features cannot steer; give 1 or more.")
    if not 0 <= min_firing <= max_firing <= 1:
        raise ConfigError(
            f"min_firing, max_firing: {min_firing:g} and {max_firing:g} are not two shares of "
            "texts in order; give 0 <= min_firing <= max_firing <= 1."
        )
    if max_density is not None and not 0 < max_density <= 1:
        raise ConfigError(
            f"max_density: {max_density:g} is not a share of tokens; give a number above 0 and "
            "at most 1, or leave it out."
        )
    if not 0 <= min_abs_score < np.inf:
        raise ConfigError(f"min_abs_score: {min_abs_score:g} is no threshold; give 0 or more.")


def _checked_density(
    density: Float[np.ndarray, " d_sae"] | None, d_sae: int
) -> Float[np.ndarray, " d_sae"]:
    if density is None:
        raise ConfigError(
            "max_density: the features' densities are needed for this filter; pass density= from "
            "the SAE's feature table, or leave max_density out."
        )
    values = np.asarray(density, dtype=np.float64)
    if values.shape != (d_sae,):
        raise MismatchError(
            f"density: shape {values.shape} does not fit the SAE's {d_sae} features; use the "
            "feature table of the same SAE."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"density: feature {np.flatnonzero(~np.isfinite(values))[0]} has no finite density; "
            "rebuild the SAE's feature table."
        )
    return values


def _checked_scores(
    scores: Float[np.ndarray, " d_sae"], d_sae: int, name: str
) -> Float[np.ndarray, " d_sae"]:
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (d_sae,):
        raise MismatchError(
            f"criterion: '{name}' gave scores of shape {values.shape} for {d_sae} features; "
            "return one score per feature."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"criterion: '{name}' gave feature {np.flatnonzero(~np.isfinite(values))[0]} a score "
            "that is not finite; its activations are too large, check the SAE's scaling."
        )
    return values
