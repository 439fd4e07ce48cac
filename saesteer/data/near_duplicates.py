"""Texts that say nearly the same in nearly the same letters, and pairing texts that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from saesteer.data.checks import plain_form
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_BLOCK_ROWS = 512


def near_duplicate_groups(
    texts: Sequence[str], *, threshold: float = 0.5, n: int = 4
) -> Int[np.ndarray, " text"]:
    """Group texts that say nearly the same in nearly the same letters.

    Two texts are near-duplicates when the Jaccard index of their sets of character n-grams is at
    least the threshold, whatever their case, white space and Unicode form (a text shorter than n
    counts as one n-gram). Groups are the connected components of that relation.

    Returns:
        The group of each text, numbered from 0 in order of first appearance.

    Raises:
        ConfigError: The threshold or n is out of range.
    """
    if not texts:
        return np.zeros(0, dtype=np.int64)
    return components(near_duplicates(texts, threshold=threshold, n=n))


def components(near: csr_matrix) -> Int[np.ndarray, " item"]:
    """Number the items of a symmetric graph by connected component, in order of appearance."""
    from scipy.sparse.csgraph import connected_components

    labels = connected_components(near, directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def near_duplicates(texts: Sequence[str], *, threshold: float = 0.5, n: int = 4) -> csr_matrix:
    """Return the Jaccard index [text, text] of near-duplicates, each text's own included.

    Raises:
        ConfigError: The threshold or n is out of range.
    """
    from scipy.sparse import coo_matrix, csr_matrix

    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; give a number above 0 and up to 1")
    if n < 1:
        raise ConfigError(f"n is {n}; give at least 1 character per n-gram")
    grams = _gram_matrix(texts, n)
    size = np.diff(grams.indptr)
    order = np.argsort(size, kind="stable")
    grams, size = csr_matrix(grams[order]), size[order]
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for start in range(0, len(texts), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(texts))
        # Rows are sorted by size, and a set less than threshold times as large as another cannot
        # reach the threshold with it: such columns are not computed at all.
        low = int(np.searchsorted(size, np.floor(threshold * size[start])))
        shared = coo_matrix(grams[start:stop] @ grams[low:stop].T)
        row, column = start + shared.row, low + shared.col
        index = shared.data / (size[row] + size[column] - shared.data)
        near = index >= threshold
        rows.append(order[row[near]])
        columns.append(order[column[near]])
        values.append(index[near])
    places = (np.concatenate(rows), np.concatenate(columns))
    found = csr_matrix((np.concatenate(values), places), shape=(len(texts), len(texts)))
    # What two blocks share stands in the rows of the later one alone.
    return csr_matrix(found.maximum(found.T))


def more_alike_than_chance(positives: Sequence[str], negatives: Sequence[str]) -> bool:
    """Tell whether texts resemble the text at the same place on the other side.

    The mean Jaccard index (character 4-grams) of the sides of a pair is held against that of all
    positives with all negatives: it has to be 1.5 times as large, and 3 standard deviations of a
    random permutation above it. Sides of pairs written as such are 3 to 12 times as alike and 20
    deviations above from 40 pairs on; sides that were joined by length are up to 1.2 times as
    alike.
    """
    n = len(positives)
    grams = _gram_matrix([*positives, *negatives], 4)
    size = np.diff(grams.indptr)
    shared = (grams[:n] @ grams[n:].T).toarray()
    index = shared / (size[:n, None] + size[None, n:] - shared)
    # The variance of a permuted trace: Hoeffding, Annals of Mathematical Statistics 22 (1951).
    centred = index - index.mean(axis=0) - index.mean(axis=1, keepdims=True) + index.mean()
    deviation = np.sqrt((centred**2).sum() / max(n - 1, 1)) / n
    own, chance = np.trace(index) / n, index.mean()
    return bool(own > 1.5 * chance and own > chance + 3 * deviation)


def _gram_matrix(texts: Sequence[str], n: int) -> csr_matrix:
    """Binary n-gram matrix [text, n-gram]."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    def gram_set(text: str) -> set[str]:
        text = plain_form(text).casefold()
        return {text[at : at + n] for at in range(len(text) - n + 1)} or {text}

    # sklearn's own character analyzer yields nothing for texts shorter than n.
    analyzer: Any = gram_set
    vectorizer = CountVectorizer(analyzer=analyzer, binary=True)
    return csr_matrix(vectorizer.fit_transform(texts), dtype=np.int32)


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

    `groups` is each text's family of near-duplicates; `positive` and `negative` are the places of
    the sides' texts, whose order decides between equal lengths.

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
