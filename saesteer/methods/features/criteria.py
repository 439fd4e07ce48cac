"""Criteria: how much each feature differs between the sides of the pairs, with its sign."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_matrix, vstack

from saesteer.methods.features.codes import PairCodes, shape_of
from saesteer.utils.errors import ConfigError

Criterion = Callable[[PairCodes], Float[np.ndarray, " d_sae"]]
"""A score per feature, positive where the feature is more active on the positive side."""

# Ranks need dense columns; this many at a time keeps an SAE of 131k features below 10 MB.
RANK_CHUNK = 2048


def mean_difference(codes: PairCodes) -> Float[np.ndarray, " d_sae"]:
    """Mean over pairs of the difference in activation (units of activation).

    Args:
        codes: Activations of both sides.

    Returns:
        `[d_sae]` scores.
    """
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

    Args:
        codes: Activations of both sides.
        shrinkage: s0 as a multiple of the median deviation, above 0.

    Returns:
        `[d_sae]` scores, without unit.

    Raises:
        ConfigError: `shrinkage` is not above 0.
    """
    deviation = np.sqrt(_column_variance(codes.delta))
    return _over_shrunken(codes.mean_delta, deviation, shrinkage)


def t_statistic(codes: PairCodes, *, shrinkage: float = 0.1) -> Float[np.ndarray, " d_sae"]:
    """`standardised_difference` times sqrt(n_pairs): Tusher et al.'s relative difference itself.

    It ranks as `standardised_difference` does, but thresholds on it (`min_abs_score=3`) mean
    the same evidence whatever the number of pairs.

    Args:
        codes: Activations of both sides.
        shrinkage: As for `standardised_difference`.

    Returns:
        `[d_sae]` scores, in standard errors.

    Raises:
        ConfigError: `shrinkage` is not above 0.
    """
    return np.sqrt(codes.n_pairs) * standardised_difference(codes, shrinkage=shrinkage)


def cohens_d(codes: PairCodes, *, shrinkage: float = 0.1) -> Float[np.ndarray, " d_sae"]:
    """Difference of the sides' means over their pooled, shrunken standard deviation.

    Cohen (1988), Statistical power analysis, eq. 2.2.1 with pooled deviation
    sqrt((s_p^2 + s_n^2) / 2), shrunken as in `standardised_difference`. It ignores the pairing.

    Args:
        codes: Activations of both sides.
        shrinkage: As for `standardised_difference`.

    Returns:
        `[d_sae]` scores, without unit.

    Raises:
        ConfigError: `shrinkage` is not above 0.
    """
    variance = (_column_variance(codes.positive) + _column_variance(codes.negative)) / 2
    return _over_shrunken(codes.mean_delta, np.sqrt(variance), shrinkage)


def auroc(codes: PairCodes) -> Float[np.ndarray, " d_sae"]:
    """2 * AUROC - 1 of each feature's activation as a score for the positive side.

    AUROC from mid-ranks, ties counting one half (Hanley & McNeil 1982); 1 means that every
    positive side lies above every negative one, -1 the opposite (also called Cliff's delta).

    Args:
        codes: Activations of both sides.

    Returns:
        `[d_sae]` scores between -1 and 1.
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
    """Share of positive sides on which the feature fires, minus that of negative sides.

    Args:
        codes: Activations of both sides.

    Returns:
        `[d_sae]` scores between -1 and 1.
    """
    return codes.firing_positive - codes.firing_negative


def per_prompt_top_n(codes: PairCodes, *, n: int = 20) -> Float[np.ndarray, " d_sae"]:
    """In how many pairs the feature is among the n largest differences, net of sign.

    Every pair gives +1 to those of its n largest |delta| that are positive and -1 to those that
    are negative; equal sizes go to the lower index, and a difference of zero never counts.

    Args:
        codes: Activations of both sides.
        n: How many features each pair names, at least 1.

    Returns:
        `[d_sae]` net counts between -n_pairs and n_pairs.

    Raises:
        ConfigError: `n` is below 1.
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
