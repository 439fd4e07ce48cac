"""Choose the features that fire sparsely and differ between the sides of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix, vstack

from saesteer.methods.features.codes import PairCodes, shape_of
from saesteer.methods.settings import SelectionSettings, checked, choose
from saesteer.utils.errors import ConfigError, DataError, MismatchError

Criterion = Callable[[PairCodes], Float[np.ndarray, " d_sae"]]
"""A score per feature, positive where the feature is more active on the positive side."""

# Ranks need dense columns; this many at a time keeps an SAE of 131k features below 10 MB.
RANK_CHUNK = 2048


def mean_difference(codes: PairCodes) -> Float[np.ndarray, " d_sae"]:
    """Mean over pairs of the difference in activation (units of activation)."""
    return codes.mean_delta.copy()


def standardised_difference(
    codes: PairCodes, *, shrinkage: float = 0.1
) -> Float[np.ndarray, " d_sae"]:
    """Mean of the paired difference over its shrunken standard deviation, d_j = m_j / (s_j + s0).

    s0 is `shrinkage` times the median of s_j over the features that vary. It keeps a feature
    with a tiny and by chance very even difference from winning: the "relative difference" of
    Tusher, Tibshirani & Chu (2001), Significance analysis of microarrays, PNAS 98, eq. 1,
    without its factor sqrt(n). Without s0 it is Cohen's d_z (Lakens 2013, eq. 6). With a single
    pair no deviation can be estimated, and the scores rank as `mean_difference`.
    """
    deviation = np.sqrt(_column_variance(codes.delta))
    return _over_shrunken(codes.mean_delta, deviation, shrinkage)


def t_statistic(codes: PairCodes, *, shrinkage: float = 0.1) -> Float[np.ndarray, " d_sae"]:
    """`standardised_difference` times sqrt(n_pairs): Tusher et al.'s relative difference itself.

    It ranks as `standardised_difference` does, but thresholds on it (`min_abs_score=3`) mean
    the same evidence, in standard errors, whatever the number of pairs.
    """
    return np.sqrt(codes.n_pairs) * standardised_difference(codes, shrinkage=shrinkage)


def cohens_d(codes: PairCodes, *, shrinkage: float = 0.1) -> Float[np.ndarray, " d_sae"]:
    """Difference of the sides' means over their pooled, shrunken standard deviation.

    Cohen (1988), Statistical power analysis, eq. 2.2.1 with pooled deviation
    sqrt((s_p^2 + s_n^2) / 2), shrunken as in `standardised_difference`. It ignores the pairing.
    """
    variance = (_column_variance(codes.positive) + _column_variance(codes.negative)) / 2
    return _over_shrunken(codes.mean_delta, np.sqrt(variance), shrinkage)


def auroc(codes: PairCodes) -> Float[np.ndarray, " d_sae"]:
    """2 * AUROC - 1 of each feature's activation as a score for the positive side.

    AUROC from mid-ranks, ties counting one half (Hanley & McNeil 1982); 1 means that every
    positive side lies above every negative one, -1 the opposite (also called Cliff's delta).
    """
    from scipy.stats import rankdata

    n = codes.n_pairs
    both = csr_matrix(vstack([codes.positive, codes.negative])).tocsc()
    scores = np.zeros(codes.d_sae)
    live = np.flatnonzero(np.diff(both.indptr))
    for start in range(0, live.size, RANK_CHUNK):
        chunk = live[start : start + RANK_CHUNK]
        ranks = rankdata(both[:, chunk].toarray(), axis=0)
        wins = ranks[:n].sum(axis=0) - n * (n + 1) / 2
        scores[chunk] = 2 * wins / n**2 - 1
    return scores


def frequency_difference(codes: PairCodes) -> Float[np.ndarray, " d_sae"]:
    """Share of positive sides on which the feature fires, minus that of negative sides."""
    return codes.firing_positive - codes.firing_negative


def per_prompt_top_n(codes: PairCodes, *, n: int = 20) -> Float[np.ndarray, " d_sae"]:
    """In how many pairs the feature is among the n largest differences, net of sign.

    Every pair gives +1 to those of its n largest |delta| that are positive and -1 to those that
    are negative; equal sizes go to the lower index, and a difference of zero never counts.
    """
    if n < 1:
        raise ConfigError(f"n: {n} features per pair cannot be named; give 1 or more.")
    delta = codes.delta
    scores = np.zeros(codes.d_sae)
    for pair in range(codes.n_pairs):
        row = slice(delta.indptr[pair], delta.indptr[pair + 1])
        features, values = delta.indices[row], delta.data[row]
        top = np.lexsort((features, -np.abs(values)))[:n]
        scores[features[top]] += np.sign(values[top])
    return scores


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "mean_difference": mean_difference,
        "standardised_difference": standardised_difference,
        "t_statistic": t_statistic,
        "cohens_d": cohens_d,
        "auroc": auroc,
        "frequency_difference": frequency_difference,
        "per_prompt_top_n": per_prompt_top_n,
    }
)


def _column_variance(matrix: csr_matrix) -> Float[np.ndarray, " d_sae"]:
    """Unbiased variance of each column, in two passes so that nothing cancels; 0 for one row."""
    n, width = shape_of(matrix)
    if n < 2:
        return np.zeros(width)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    with np.errstate(over="ignore"):
        squares = np.bincount(
            matrix.indices, weights=(matrix.data - mean[matrix.indices]) ** 2, minlength=width
        )
        zeros = n - np.bincount(matrix.indices, minlength=width)
        return (squares + zeros * mean**2) / (n - 1)


def _over_shrunken(
    difference: Float[np.ndarray, " d_sae"],
    deviation: Float[np.ndarray, " d_sae"],
    shrinkage: float,
) -> Float[np.ndarray, " d_sae"]:
    if not 0 < shrinkage < np.inf:
        raise ConfigError(f"shrinkage: {shrinkage:g} cannot shrink; give a number above 0.")
    varying = deviation[deviation > 0]
    # With no deviation at all (one pair) any constant gives the same ranking.
    floor = shrinkage * float(np.median(varying)) if varying.size else 1.0
    scores = difference / (deviation + floor)
    # A deviation that overflowed must not pass for "no difference".
    return np.where(np.isfinite(deviation), scores, np.nan)


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

    Raises:
        ConfigError: The criterion is unknown or a number is out of range.
        DataError: The filters leave no feature (the sentence says which took how many), or the
            scores or densities are not finite.
        MismatchError: `density` or the scores have another length than the SAE has features.

    Example:
        >>> len(ss.select_features(codes, n_features=4, max_firing=1.0))
        4
    """
    if isinstance(criterion, str):
        name, score = criterion, choose(CRITERIA, criterion, field="criterion")
    else:
        function = criterion.func if isinstance(criterion, partial) else criterion
        name, score = getattr(function, "__name__", type(function).__name__), criterion
    checked(
        SelectionSettings,
        "select_features",
        n_features=n_features,
        min_firing=min_firing,
        max_firing=max_firing,
        max_density=max_density,
        min_abs_score=min_abs_score,
    )
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
    left = np.ones(codes.d_sae, dtype=bool)
    removed: dict[str, int] = {}
    for reason, passes in filters:
        removed[reason] = int((left & ~passes).sum())
        left &= passes
    candidates = np.flatnonzero(left)
    if candidates.size == 0:
        taken = "; ".join(f"{reason}: {count}" for reason, count in removed.items() if count)
        raise DataError(
            f"select_features: none of the {codes.d_sae} features is left ({taken}); widen "
            "min_firing, max_firing, max_density or min_abs_score, or give more pairs."
        )
    indices = candidates[strongest_first(scores[candidates], candidates)][:n_features]
    return FeatureSelection(
        indices=indices,
        scores=scores[indices],
        criterion=name,
        n_candidates=int(candidates.size),
        firing_positive=codes.firing_positive[indices],
        firing_negative=codes.firing_negative[indices],
        removed=removed,
    )


def strongest_first(
    values: Float[np.ndarray, " feature"], indices: Int[np.ndarray, " feature"]
) -> Int[np.ndarray, " feature"]:
    """Return the order by descending |value|, ties by ascending index."""
    return np.lexsort((indices, -np.abs(values)))


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
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"density: feature {bad[0]} has no finite density; rebuild the SAE's feature table."
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
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"criterion: '{name}' gave feature {bad[0]} a score that is not finite; its "
            "activations are too large, check the SAE's scaling."
        )
    return values
