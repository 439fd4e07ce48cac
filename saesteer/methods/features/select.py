"""Choose the features that fire sparsely and differ between the sides of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator, model_validator
from scipy.sparse import csr_matrix, vstack

from saesteer.methods.features.codes import PairCodes, shape_of, shaped
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.settings import Settings, parse_config
from saesteer.utils.text import nearest

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
    return _over_shrunken(codes.mean_delta, _column_variance(codes.delta), shrinkage)


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
    return _over_shrunken(codes.mean_delta, variance, shrinkage)


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
    for start, stop in zip(delta.indptr[:-1], delta.indptr[1:], strict=True):
        features, values = delta.indices[start:stop], delta.data[start:stop]
        top = strongest_first(values, features)[:n]
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
    variance: Float[np.ndarray, " d_sae"],
    shrinkage: float,
) -> Float[np.ndarray, " d_sae"]:
    if not 0 < shrinkage < np.inf:
        raise ConfigError(f"shrinkage: {shrinkage:g} cannot shrink; give a number above 0.")
    deviation = np.sqrt(variance)
    varying = deviation[deviation > 0]
    # With no deviation at all (one pair) any constant gives the same ranking.
    floor = shrinkage * float(np.median(varying)) if varying.size else 1.0
    # A deviation that overflowed must not pass for "no difference".
    return np.where(np.isfinite(deviation), difference / (deviation + floor), np.nan)


def known_name(name: str, registry: Mapping[str, Any]) -> str:
    """Return a name, for a settings field.

    Raises:
        ValueError: The registry does not have it; the closest that it has is named.
    """
    if name not in registry:
        raise ValueError(f"{name!r} is not known{nearest(name, registry)}; correct it")
    return name


class SelectionSettings(Settings):
    """Which features are candidates; see `saesteer.select_features`."""

    criterion: str = "standardised_difference"
    n_features: int = Field(default=64, ge=1)
    min_firing: float = Field(default=0.02, ge=0, le=1)
    max_firing: float = Field(default=0.6, gt=0, le=1)
    max_density: float | None = Field(default=None, gt=0, le=1)
    min_abs_score: float = Field(default=0.0, ge=0)

    @field_validator("criterion")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, CRITERIA)

    @model_validator(mode="after")
    def _firing_in_order(self) -> SelectionSettings:
        if self.min_firing > self.max_firing:
            raise ValueError(
                f"min_firing ({self.min_firing}) is above max_firing ({self.max_firing}); lower it"
            )
        return self


@dataclass(frozen=True, eq=False)
class FeatureSelection:
    """The chosen features, by descending |score|, then ascending index."""

    indices: Int[np.ndarray, " feature"]
    scores: Float[np.ndarray, " feature"]
    n_candidates: int  # how many passed every filter, before the cut at `n_features`
    firing_positive: Float[np.ndarray, " feature"]  # share of positive sides
    firing_negative: Float[np.ndarray, " feature"]

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
        density: Share of a corpus' tokens on which each feature fires, as in the SAE's table.
        max_density: Greatest density allowed; needs `density`.
        min_abs_score: Least |score| to be chosen, in the criterion's unit. A score of exactly
            zero is never chosen.

    Raises:
        ConfigError: The criterion is unknown or a number is out of range.
        DataError: The filters leave no feature (the sentence says which took how many), or the
            scores or densities are not finite, as of activations too large to square.
        MismatchError: `density` or the scores have another length than the SAE has features.

    Example:
        >>> len(ss.select_features(codes, n_features=4, max_firing=1.0))
        4
    """
    named = {"criterion": criterion} if isinstance(criterion, str) else {}
    limits = {"min_firing": min_firing, "max_firing": max_firing, "max_density": max_density}
    values = {**named, **limits, "n_features": n_features, "min_abs_score": min_abs_score}
    parse_config(values, kind=SelectionSettings, place="select_features")
    rate = codes.firing
    passes: dict[str, Bool[np.ndarray, " d_sae"]] = {
        "never fires": rate > 0,
        f"fires on less than min_firing={min_firing:g}": rate >= min_firing,
        f"fires on more than max_firing={max_firing:g}": rate <= max_firing,
    }
    if max_density is not None:
        if density is None:
            raise ConfigError(
                "max_density: the features' densities are needed for this filter; pass density= "
                "from the SAE's feature table, or leave max_density out."
            )
        dense = shaped(density, "density", (codes.d_sae,), "use the table of the same SAE")
        passes[f"denser than max_density={max_density:g}"] = dense <= max_density
    score = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    advice = "a criterion gives one score for each feature"
    scores = shaped(score(codes), f"criterion {criterion}", (codes.d_sae,), advice)
    passes["does not differ between the sides"] = scores != 0
    if min_abs_score > 0:
        passes[f"|score| below min_abs_score={min_abs_score:g}"] = np.abs(scores) >= min_abs_score
    left = np.ones(codes.d_sae, dtype=bool)
    taken: list[str] = []
    for reason, passing in passes.items():
        if count := int((left & ~passing).sum()):
            taken.append(f"{reason}: {count}")
        left &= passing
    candidates = np.flatnonzero(left)
    if candidates.size == 0:
        raise DataError(
            f"select_features: none of the {codes.d_sae} features is left ({'; '.join(taken)}); "
            "widen min_firing, max_firing, max_density or min_abs_score, or give more pairs."
        )
    indices = candidates[strongest_first(scores[candidates], candidates)][:n_features]
    return FeatureSelection(
        indices=indices,
        scores=scores[indices],
        n_candidates=int(candidates.size),
        firing_positive=codes.firing_positive[indices],
        firing_negative=codes.firing_negative[indices],
    )


def strongest_first(
    values: Float[np.ndarray, " feature"], indices: Int[np.ndarray, " feature"]
) -> Int[np.ndarray, " feature"]:
    """Return the order by descending |value|, ties by ascending index."""
    return np.lexsort((indices, -np.abs(values)))
