"""Pairing texts that stand alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def pair_by_length(
    texts: Sequence[str],
    groups: Int[np.ndarray, " text"],
    positive: Int[np.ndarray, " positive"],
    negative: Int[np.ndarray, " negative"],
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Pair texts of about the same length.

    Each side is ordered by length, with near-duplicates kept next to each other, and the sides are
    joined rank by rank: so the two texts of a pair are of similar length, and families of
    near-duplicates meet few others. Of the longer side those texts stay whose lengths fit the other
    side best (least squares).

    Args:
        texts: Texts of both sides.
        groups: Each text's family of near-duplicates.
        positive: Places of the positive texts; their order decides between equal lengths.
        negative: Places of the negative texts, likewise.

    Returns:
        The places of each pair's positive and negative text, in the order of the positive ones.
    """
    lengths = np.array([len(text) for text in texts])
    positive, negative = _fitting(lengths, positive, negative)
    positive = _by_length(lengths, groups, positive)
    negative = _by_length(lengths, groups, negative)
    order = np.argsort(positive)
    return positive[order], negative[order]


def _fitting(
    lengths: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the longer side down to the statements whose lengths fit the shorter one best."""
    from scipy.optimize import linear_sum_assignment

    if len(positive) == len(negative):
        return positive, negative
    gap = lengths[positive][:, None].astype(np.float32) - lengths[negative][None, :]
    rows, columns = linear_sum_assignment(gap**2)
    return positive[rows], negative[columns]


def _by_length(lengths: np.ndarray, groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Order by the group's median length, then group, then length; ties stay as they came."""
    names, first, member_of = np.unique(groups[chosen], return_index=True, return_inverse=True)
    middle = np.array(
        [np.median(lengths[chosen][member_of == group]) for group in range(len(names))]
    )
    return chosen[np.lexsort((lengths[chosen], first[member_of], middle[member_of]))]
