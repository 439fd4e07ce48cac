"""What the SAE saw in each pair: one row of feature activations per side of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix, vstack

from saesteer.utils.errors import DataError, MismatchError

if TYPE_CHECKING:
    from saesteer.models.reading import Activations, PairActivations
    from saesteer.saes.adapter import Sae

Indices = Int[np.ndarray, " feature"] | Sequence[int]


@dataclass(frozen=True, eq=False)
class PairCodes:
    """Feature activations of both sides of every pair, as sparse matrices `[pair, d_sae]`.

    They hold each feature's mean activation over the side's tokens; a feature fires on a text where
    that is not zero. Arrays and sparse matrices are taken, and copied.

    Raises:
        DataError: Shapes differ, there is no pair or no feature, or a value is not finite.

    Example:
        >>> codes = ss.PairCodes(np.array([[2.0, 0.0]]), np.array([[0.5, 0.0]]))
        >>> codes.mean_delta.tolist()
        [1.5, 0.0]
    """

    positive: csr_matrix
    negative: csr_matrix

    if TYPE_CHECKING:

        def __init__(
            self, positive: np.ndarray | csr_matrix, negative: np.ndarray | csr_matrix
        ) -> None: ...

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            object.__setattr__(self, name, _as_csr(getattr(self, name), name))
        shape = shape_of(self.positive)
        if shape_of(self.negative) != shape:
            raise DataError(
                f"PairCodes.negative: its shape {shape_of(self.negative)} differs from positive's "
                f"{shape}; encode both with the same pairs and the same SAE."
            )
        if 0 in shape:
            raise DataError(
                f"PairCodes.positive: shape {shape} holds no activations; give at least one "
                "pair and an SAE with at least one feature."
            )

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
        """Mean of `delta` over the pairs."""
        return np.asarray(self.delta.mean(axis=0)).ravel()

    @cached_property
    def mean_size(self) -> Float[np.ndarray, " d_sae"]:
        """Mean of |`delta`| over the pairs."""
        return np.asarray(abs(self.delta).mean(axis=0)).ravel()

    @cached_property
    def firing_positive(self) -> Float[np.ndarray, " d_sae"]:
        """Share of positive sides (texts, not tokens) on which each feature fires."""
        return self.positive.getnnz(axis=0) / self.n_pairs

    @cached_property
    def firing_negative(self) -> Float[np.ndarray, " d_sae"]:
        """Share of negative sides (texts, not tokens) on which each feature fires."""
        return self.negative.getnnz(axis=0) / self.n_pairs

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
        return PairCodes(self.positive[:, chosen], self.negative[:, chosen])

    def stacked(self, indices: Indices | None = None) -> Float[np.ndarray, "side feature"]:
        """Dense activations of all sides, the positives' rows and then the negatives'.

        Columns are the features of `indices` in that order, or all.

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
    sides = (activations.positive, activations.negative)
    return PairCodes(*(_encode(sae, side, last) for side in sides))


def _encode(sae: Sae, texts: Activations, last: bool) -> csr_matrix:
    means = []
    for index in range(texts.n_texts):
        codes = sae.encode(texts.text(index)).cpu().numpy()
        means.append(csr_matrix((codes[-1:] if last else codes).mean(axis=0, keepdims=True)))
    return csr_matrix(vstack(means))


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


def shaped(values: Any, name: str, shape: tuple[int | None, ...], advice: str) -> np.ndarray:
    """Return finite numbers as a float64 array; None in a shape stands for any length above 0.

    Raises:
        MismatchError: The shape is another one.
        DataError: A number is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    wanted = array.ndim == len(shape) and array.size and all(map(_fits, array.shape, shape))
    if not wanted:
        asked = str(tuple("n" if length is None else length for length in shape)).replace("'", "")
        raise MismatchError(f"{name}: shape {array.shape} is not {asked}; {advice}.")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if bad.size:
        raise DataError(
            f"{name}: row {bad[0]} (counted from 0) is not all finite numbers; look where they "
            "overflowed, or use a wider dtype."
        )
    return array


def _fits(length: int, wanted: int | None) -> bool:
    return wanted is None or length == wanted


def directions(
    rows: Float[np.ndarray, "feature d_model"],
    indices: Int[np.ndarray, " feature"],
    d_model: int | None = None,
) -> Float[np.ndarray, "feature d_model"]:
    """Return decoder rows as float64.

    Raises:
        MismatchError: They are not one for each index, or of another width.
        DataError: A row is zero or not finite.
    """
    advice = "give one row of the decoder for each feature, of the same model and site"
    values = shaped(rows, "decoder_rows", (len(indices), d_model), advice)
    empty = np.flatnonzero(~values.any(axis=1))
    if empty.size:
        raise DataError(
            f"decoder_rows: the decoder row of feature {int(indices[empty[0]])} is zero, so it "
            "has no direction; leave that feature out or check the SAE's weights."
        )
    return values
