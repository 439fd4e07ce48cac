"""What the SAE saw in each pair: one row of feature activations per side of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix, vstack

from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from saesteer.models.reading import Activations, PairActivations
    from saesteer.saes.adapter import Sae

# Shares of tokens are sums of floats; a rounding error above 1 is not a mistake of the caller.
SHARE_TOLERANCE = 1e-6

Indices = Int[np.ndarray, " feature"] | Sequence[int]


@dataclass(frozen=True, eq=False)
class PairCodes:
    """Feature activations of both sides of every pair, as sparse matrices `[pair, d_sae]`.

    `positive` and `negative` hold each feature's mean activation over the side's tokens (of any
    sign), `positive_frequency` and `negative_frequency` the share (0 to 1) of the tokens on which
    it fires. What is given is copied.

    Raises:
        DataError: Shapes differ, there is no pair or no feature, a value is not finite, or a
            frequency lies outside 0 to 1.

    Example:
        >>> codes = ss.PairCodes.from_dense(np.array([[2.0, 0.0]]), np.array([[0.5, 0.0]]))
        >>> codes.mean_delta.tolist()
        [1.5, 0.0]
    """

    positive: csr_matrix
    negative: csr_matrix
    positive_frequency: csr_matrix
    negative_frequency: csr_matrix

    def __post_init__(self) -> None:
        names = ("positive", "negative", "positive_frequency", "negative_frequency")
        for name in names:
            object.__setattr__(self, name, _as_csr(getattr(self, name), name))
        shape = shape_of(self.positive)
        for name in names[1:]:
            if shape_of(getattr(self, name)) != shape:
                raise DataError(
                    f"PairCodes.{name}: its shape {shape_of(getattr(self, name))} differs from "
                    f"positive's {shape}; encode all four with the same pairs and the same SAE."
                )
        if 0 in shape:
            raise DataError(
                f"PairCodes.positive: shape {shape} holds no activations; give at least one "
                "pair and an SAE with at least one feature."
            )
        for name in names[2:]:
            values = getattr(self, name).data
            if values.size and (values.min() < 0 or values.max() > 1 + SHARE_TOLERANCE):
                raise DataError(
                    f"PairCodes.{name}: values run from {values.min():.3g} to "
                    f"{values.max():.3g}; give the share of tokens, between 0 and 1."
                )

    @classmethod
    def from_dense(
        cls,
        positive: Float[np.ndarray, "pair d_sae"],
        negative: Float[np.ndarray, "pair d_sae"],
    ) -> PairCodes:
        """Build codes from one activation per side; a frequency is 1 where a feature is active."""
        sides = (_as_csr(positive, "positive"), _as_csr(negative, "negative"))
        fires = [csr_matrix((np.ones(s.nnz), s.indices, s.indptr), shape=s.shape) for s in sides]
        return cls(sides[0], sides[1], fires[0], fires[1])

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return shape_of(self.positive)[0]

    @property
    def d_sae(self) -> int:
        """Number of features of the SAE (or of the columns that were kept)."""
        return shape_of(self.positive)[1]

    @cached_property
    def delta(self) -> csr_matrix:
        """`[pair, d_sae]`: positive minus negative activation."""
        return csr_matrix(self.positive - self.negative)

    @cached_property
    def mean_delta(self) -> Float[np.ndarray, " d_sae"]:
        """Mean of `delta` over the pairs, one number per feature."""
        return np.asarray(self.delta.mean(axis=0)).ravel()

    @cached_property
    def firing_positive(self) -> Float[np.ndarray, " d_sae"]:
        """Share of positive sides (texts, not tokens) on which each feature fires."""
        return _firing(self.positive_frequency)

    @cached_property
    def firing_negative(self) -> Float[np.ndarray, " d_sae"]:
        """Share of negative sides (texts, not tokens) on which each feature fires."""
        return _firing(self.negative_frequency)

    @property
    def firing(self) -> Float[np.ndarray, " d_sae"]:
        """Share of all sides on which each feature fires."""
        return (self.firing_positive + self.firing_negative) / 2

    @property
    def labels(self) -> Int[np.ndarray, " side"]:
        """Labels of the rows of `stacked`: 1 for each positive side, then 0 for each negative."""
        return np.repeat(np.array([1, 0]), self.n_pairs)

    def columns(self, indices: Indices) -> PairCodes:
        """Keep some features only; column j of the result is feature `indices[j]`.

        Raises:
            DataError: An index is not a feature of this SAE, or there is none.
        """
        chosen = self._checked(indices)
        return PairCodes(
            self.positive[:, chosen],
            self.negative[:, chosen],
            self.positive_frequency[:, chosen],
            self.negative_frequency[:, chosen],
        )

    def stacked(self, indices: Indices | None = None) -> Float[np.ndarray, "side feature"]:
        """Dense activations of all sides, the positives' rows and then the negatives'.

        Row i and row `n_pairs + i` are the two sides of pair i; `labels` has their labels. Columns
        are the features of `indices` in that order, or all.

        Raises:
            DataError: An index is not a feature of this SAE, or there is none.
        """
        both = csr_matrix(vstack([self.positive, self.negative]))
        return (both if indices is None else both[:, self._checked(indices)]).toarray()

    def _checked(self, indices: Indices) -> Int[np.ndarray, " feature"]:
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
            raise DataError(
                f"indices: an array of shape {chosen.shape} and type {chosen.dtype} names no "
                "features; give a list of at least one feature index."
            )
        outside = chosen[(chosen < 0) | (chosen >= self.d_sae)]
        if outside.size:
            raise DataError(
                f"indices: feature {outside[0]} does not exist, the codes hold features 0 to "
                f"{self.d_sae - 1}; use indices of the SAE that made the codes."
            )
        return chosen.astype(np.int64)


def encode_pairs(sae: Sae, activations: PairActivations) -> PairCodes:
    """Encode both sides of every pair.

    Each token is encoded on its own (an SAE was trained on tokens, not on averages) and the codes
    are then pooled as the activations are: the mean over the side's tokens, or the last token.

    Raises:
        MismatchError: The activations have another width than the SAE.

    Example:
        >>> read = ss.read_pair_activations(model, train, [sae.site])[sae.site]
        >>> ss.encode_pairs(sae, read).n_pairs == len(train)
        True
    """
    last = activations.pooling == "last"
    positive, positive_frequency = _encode(sae, activations.positive, last)
    negative, negative_frequency = _encode(sae, activations.negative, last)
    return PairCodes(positive, negative, positive_frequency, negative_frequency)


def _encode(sae: Sae, texts: Activations, last: bool) -> tuple[csr_matrix, csr_matrix]:
    means, frequencies = [], []
    for index in range(texts.n_texts):
        codes = sae.encode(texts.text(index)).cpu().numpy()
        codes = codes[-1:] if last else codes
        means.append(csr_matrix(codes.mean(axis=0, keepdims=True)))
        frequencies.append(csr_matrix((codes != 0).mean(axis=0, keepdims=True, dtype=np.float64)))
    return csr_matrix(vstack(means)), csr_matrix(vstack(frequencies))


def shape_of(matrix: csr_matrix) -> tuple[int, int]:
    """Rows and columns of a sparse matrix, whose own type allows for None."""
    return cast("tuple[int, int]", matrix.shape)


def _as_csr(matrix: object, name: str) -> csr_matrix:
    """Copy `matrix` as a canonical csr_matrix, so that `data` holds each non-zero once."""
    try:
        result = csr_matrix(matrix, dtype=np.float64, copy=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"PairCodes.{name}: this is not a matrix of numbers; give one row per pair and one "
            "column per feature."
        ) from error
    result.sum_duplicates()
    bad = np.flatnonzero(~np.isfinite(result.data))
    if bad.size:
        row = int(np.searchsorted(result.indptr, bad[0], side="right")) - 1
        raise DataError(
            f"PairCodes.{name}: the activations of pair {row} (counted from 0) are not all "
            "finite numbers; look at that pair's text and at the SAE's dtype."
        )
    result.eliminate_zeros()
    return result


def _firing(frequency: csr_matrix) -> Float[np.ndarray, " d_sae"]:
    n_pairs, d_sae = shape_of(frequency)
    return np.bincount(frequency.indices, minlength=d_sae) / n_pairs


def finite_matrix(
    values: Float[np.ndarray, "row column"], field: str, row_name: str
) -> Float[np.ndarray, "row column"]:
    """Return a matrix of at least one row and column as float64.

    Raises:
        DataError: It is none, or a number in it is not finite.
    """
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{field}: this is not an array of numbers; give one row per {row_name}."
        ) from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(
            f"{field}: shape {matrix.shape} is not a matrix with at least one {row_name} and "
            f"one column; give one row per {row_name}."
        )
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise DataError(
            f"{field}: row {bad[0]} (counted from 0) is not all finite numbers; find the "
            f"{row_name} whose activations overflowed, or use a wider dtype."
        )
    return matrix


def checked_rows(
    rows: Float[np.ndarray, "feature d_model"], indices: Int[np.ndarray, " feature"]
) -> Float[np.ndarray, "feature d_model"]:
    """Return decoder rows as float64.

    Raises:
        DataError: There is no row, or a row is zero or not finite.
    """
    values = finite_matrix(rows, "decoder_rows", "feature")
    empty = np.flatnonzero(np.linalg.norm(values, axis=1) == 0)
    if empty.size:
        raise DataError(
            f"decoder_rows: the decoder row of feature {int(indices[empty[0]])} is zero, so it "
            "has no direction; leave that feature out or check the SAE's weights."
        )
    return values
