"""Train, validation and test without the same thing said twice across them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from saesteer.data.pairs import PairSet
from saesteer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of one set of pairs, each in the order of that set."""

    train: PairSet
    validation: PairSet
    test: PairSet


def near_duplicate_groups(
    texts: Sequence[str], *, threshold: float = 0.5, n: int = 4
) -> Int[np.ndarray, " text"]:
    """Group texts that say nearly the same in nearly the same letters.

    Two texts are near-duplicates when the Jaccard index of their sets of character n-grams is at
    least the threshold, after lower-casing and collapsing white space (a text shorter than n counts
    as one n-gram). Groups are the connected components of that relation.

    Args:
        texts: Any number of texts.
        threshold: Jaccard index from which on two texts belong together, above 0 up to 1.
        n: Characters per n-gram.

    Returns:
        The group of each text, numbered from 0 in order of first appearance.

    Raises:
        ConfigError: The threshold or n is out of range.
    """
    from scipy.sparse.csgraph import connected_components

    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; give a number above 0 and up to 1")
    if n < 1:
        raise ConfigError(f"n is {n}; give at least 1 character per n-gram")
    if not texts:
        return np.zeros(0, dtype=np.int64)
    _, labels = connected_components(_near_duplicates(texts, threshold, n), directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def split_pairs(
    pairs: PairSet,
    *,
    validation: float = 0.2,
    test: float = 0.3,
    seed: int = 0,
    threshold: float = 0.5,
) -> Split:
    """Divide pairs into train, validation and test.

    Pairs that share a near-duplicate statement, on whichever side, always stay together, so no
    statement, nor its near-duplicate, stands in two parts. Sizes come as close to the asked shares
    as these groups allow.

    Args:
        pairs: The pairs to divide.
        validation: Share of the pairs for validation, from 0 to below 1.
        test: Share of the pairs for test, from 0 to below 1; train gets the rest.
        seed: Decides which groups go where.
        threshold: Jaccard index of near-duplicates, see `near_duplicate_groups`.

    Returns:
        The three parts; one whose share is 0 is empty.

    Raises:
        DataError: There are too few groups to fill the parts.
        ConfigError: The shares or the threshold are out of range.
    """
    shares = np.array([1 - validation - test, validation, test])
    if not (validation >= 0 and test >= 0 and shares[0] > 1e-9):
        raise ConfigError(
            f"the shares validation={validation} and test={test} leave nothing to train on; "
            "give two numbers from 0 on that add up to less than 1"
        )
    group_of = _groups_of_pairs(pairs, threshold)
    sizes = np.bincount(group_of, minlength=1)
    wanted = int((shares > 0).sum())
    if len(pairs) == 0 or len(sizes) < wanted:
        raise DataError(
            f"{pairs.source}: {len(pairs)} pairs form {len(sizes) if len(pairs) else 0} groups of "
            f"near-duplicates, too few for {wanted} parts; add pairs that are worded "
            "differently, or raise the threshold"
        )
    part_of_group = _deal_out(sizes, shares * len(pairs), np.random.default_rng(seed))
    train, held_out, tested = (
        pairs.subset(np.flatnonzero(part_of_group[group_of] == part).tolist()) for part in range(3)
    )
    return Split(train=train, validation=held_out, test=tested)


def _near_duplicates(texts: Sequence[str], threshold: float, n: int) -> csr_matrix:
    """Adjacency matrix [text, text] of near-duplicates (one triangle)."""
    from scipy.sparse import coo_matrix, csr_matrix

    grams, size, order = _gram_matrix(texts, n)
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    for start in range(0, len(texts), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(texts))
        # Rows are sorted by size, and a set less than threshold times as large as another cannot
        # reach the threshold with it: such columns are not computed at all.
        low = int(np.searchsorted(size, np.floor(threshold * size[start])))
        shared = coo_matrix(grams[start:stop] @ grams[low:stop].T)
        row, column = start + shared.row, low + shared.col
        union = size[row] + size[column] - shared.data
        near = shared.data / union >= threshold
        rows.append(order[row[near]])
        columns.append(order[column[near]])
    row, column = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(len(row), dtype=np.int8)
    return csr_matrix((ones, (row, column)), shape=(len(texts), len(texts)))


def _gram_matrix(texts: Sequence[str], n: int) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Binary n-gram matrix with its rows sorted by size, those sizes, and the texts' order."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    def gram_set(text: str) -> set[str]:
        text = " ".join(text.lower().split())
        return {text[at : at + n] for at in range(len(text) - n + 1)} or {text}

    # sklearn's own character analyzer yields nothing for texts shorter than n.
    analyzer: Any = gram_set
    vectorizer = CountVectorizer(analyzer=analyzer, binary=True)
    grams = csr_matrix(vectorizer.fit_transform(texts), dtype=np.int32)
    size = np.diff(grams.indptr)
    order = np.argsort(size, kind="stable")
    return csr_matrix(grams[order]), size[order], order


def _groups_of_pairs(pairs: PairSet, threshold: float) -> np.ndarray:
    """Connected components of pairs over shared near-duplicate statements."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    groups = near_duplicate_groups(pairs.positives + pairs.negatives, threshold=threshold)
    if len(groups) == 0:
        return groups
    positive, negative = groups[: len(pairs)], groups[len(pairs) :]
    n_groups = int(groups.max()) + 1
    joined = coo_matrix((np.ones(len(pairs)), (positive, negative)), shape=(n_groups, n_groups))
    _, component = connected_components(joined, directed=False)
    return np.unique(component[positive], return_inverse=True)[1]


def _deal_out(sizes: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each group, the largest first, to the part that lacks most; none stays empty."""
    shuffled = rng.permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    part_of_group = np.empty(len(sizes), dtype=np.int64)
    lacking = targets.astype(float)
    empty = targets > 0
    for position, group in enumerate(order):
        must_fill = len(order) - position <= int(empty.sum())
        allowed = empty if must_fill else targets > 0
        part = int(np.argmax(np.where(allowed, lacking, -np.inf)))
        part_of_group[group] = part
        lacking[part] -= sizes[group]
        empty[part] = False
    return part_of_group
