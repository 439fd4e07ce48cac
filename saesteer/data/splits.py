"""Parts of pairs and of labelled texts without the same thing said twice across them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from saesteer.data.chains import Division
from saesteer.data.checks import plain_form
from saesteer.data.near_duplicates import (
    components,
    more_alike_than_chance,
    near_duplicate_groups,
    near_duplicates,
    pair_by_length,
)
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.text import shorten

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from saesteer.data.labelled import LabelledSet
    from saesteer.data.pairs import PairSet

# Of fewer pairs it cannot be told whether they were paired by chance.
_FEWEST_TO_TELL = 20


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of one set of pairs, each in the order of that set."""

    train: PairSet
    validation: PairSet
    test: PairSet


def split_pairs(
    pairs: PairSet,
    *,
    validation: float = 0.2,
    test: float = 0.3,
    seed: int = 0,
    threshold: float = 0.5,
) -> Split:
    """Divide pairs into train, validation and test.

    No statement, nor its near-duplicate, stands in two parts, on whichever side. Pairs that share
    one stay together, and sizes come as close to the asked shares as that allows. Where a part
    would get less than half of its share so, two things are done about it:

    - Sides that are no pair by meaning (`PairSet.joined`; or, of 20 pairs and more without
      prompts, those whose sides are no more alike than any positive and any negative text) are
      divided each by itself, and paired anew inside each part by length. Such a pair keeps the id
      of its positive side.
    - Chains of near-duplicates are cut by leaving out the fewest that link them.

    Args:
        validation: Share of the pairs for validation, from 0 to below 1; of 0 the part is empty.
        test: Share of the pairs for test, from 0 to below 1; train gets the rest.
        seed: Decides which statements go where, and how they are paired anew.
        threshold: Jaccard index of near-duplicates, see `near_duplicate_groups`.

    Raises:
        DataError: A part would stay empty.
        ConfigError: The shares or the threshold are out of range.

    Example:
        >>> parts = ss.split_pairs(ss.load_pairs("agreeableness"), validation=0.2, test=0.3)
        >>> len(parts.train) > len(parts.test) > len(parts.validation)
        True
    """
    shares = np.array([1 - validation - test, validation, test])
    if not (validation >= 0 and test >= 0 and shares[0] > 1e-9):
        raise ConfigError(
            f"the shares validation={validation} and test={test} leave nothing to train on; "
            "give two numbers from 0 on that add up to less than 1"
        )
    wanted = int((shares > 0).sum())
    if len(pairs) < wanted:
        raise DataError(
            f"{pairs.source}: {len(pairs)} pairs are too few for {wanted} parts; add some"
        )
    targets = shares * len(pairs)
    texts = [*pairs.positives, *pairs.negatives]
    near = near_duplicates(texts, threshold=threshold)
    found = _divide_pairs(pairs, near, targets, seed)
    if found is None:
        raise DataError(
            f"{pairs.source}: {len(pairs)} pairs cannot fill {wanted} parts without near-duplicates"
            f" across them{_why(pairs, near)}; add pairs that are worded differently, or raise the "
            "threshold"
        )
    return Split(*found)


def near_duplicate_cause(pairs: PairSet, *, threshold: float) -> str:
    """Return why pairs are hard to divide, to be added to a message; "" where nothing is alike."""
    return _why(pairs, near_duplicates([*pairs.positives, *pairs.negatives], threshold=threshold))


def split_record(pairs: PairSet, parts: Mapping[str, PairSet]) -> dict[str, Any]:
    """Return what to record of a split of `pairs` into named parts.

    The ids by part; `left_out`, how many pairs are in none; and `negatives`, where pairs were made
    anew: by pair the id that its negative text stood under.
    """
    own = {pair.id: pair.negative for pair in pairs}
    place = {pair.negative: pair.id for pair in reversed(pairs.pairs)}
    anew = {
        pair.id: place[pair.negative]
        for part in parts.values()
        for pair in part
        if pair.negative != own[pair.id]
    }
    return {
        **{name: [pair.id for pair in part] for name, part in parts.items()},
        "left_out": len(pairs) - sum(map(len, parts.values())),
        **({"negatives": anew} if anew else {}),
    }


def _divide_pairs(
    pairs: PairSet, near: csr_matrix, targets: np.ndarray, seed: int
) -> list[PairSet] | None:
    """Return the parts by the first way that makes them large enough, else by the best."""
    n = len(pairs)
    whole = Division(_linked_pairs(near), np.ones((n, 2), dtype=np.int64), targets, seed)
    division, parts = whole, whole.divide()
    if not whole.large_enough(parts):
        single = np.repeat(np.eye(2, dtype=np.int64), n, axis=0)
        other = Division(near, single, targets, seed) if _are_joined(pairs) else whole
        divided = other.divide(cut=True)
        if other.worth(divided) > whole.worth(parts):
            division, parts = other, divided
    if not division.counts(parts)[targets > 0].all():
        return None
    if division is whole:
        return [pairs.subset(np.flatnonzero(parts == k).tolist()) for k in range(len(targets))]
    groups = components(near)
    return [_pair_anew(pairs, groups, parts == k, seed) for k in range(len(targets))]


def _linked_pairs(near: csr_matrix) -> csr_matrix:
    """Return which pairs share near-duplicates [pair, pair], from those of their texts."""
    from scipy.sparse import csr_matrix, eye_array, hstack

    n = len(near.indptr) // 2
    has = csr_matrix(hstack([eye_array(n), eye_array(n)]))
    return csr_matrix(has @ near @ has.T)


def _are_joined(pairs: PairSet) -> bool:
    """Tell whether the sides of the pairs are no pair by meaning."""
    if pairs.joined:
        return True
    if len(pairs) < _FEWEST_TO_TELL or any(pair.prompt is not None for pair in pairs):
        return False
    return not more_alike_than_chance(pairs.positives, pairs.negatives)


def _pair_anew(pairs: PairSet, groups: np.ndarray, chosen: np.ndarray, seed: int) -> PairSet:
    """Pair the chosen of all texts, positives first, by length."""
    n, rng = len(pairs), np.random.default_rng(seed)
    positive, negative = pair_by_length(
        [*pairs.positives, *pairs.negatives],
        groups,
        rng.permutation(np.flatnonzero(chosen[:n])),
        n + rng.permutation(np.flatnonzero(chosen[n:])),
    )
    made = []
    for p, q in zip(positive, negative, strict=True):
        own, other = pairs.pairs[p], pairs.pairs[q - n]
        # A text that stands on both sides is no contrast to itself.
        if plain_form(own.positive) != plain_form(other.negative):
            made.append(replace(own, negative=other.negative, negative_span=other.negative_span))
    return replace(pairs, pairs=tuple(made), joined=True)


def _why(pairs: PairSet, near: csr_matrix) -> str:
    """Name the largest set of pairs that cannot be parted, and two texts that link them."""
    linked = components(_linked_pairs(near))
    size = np.bincount(linked, minlength=1)
    if size.max(initial=0) < 2:
        return ""
    texts = [*pairs.positives, *pairs.negatives]
    member = np.tile(linked == size.argmax(), 2)
    likeness = near[member][:, member].tolil()
    likeness.setdiag(0)
    likeness = likeness.tocsr()
    centre = int(np.diff(likeness.indptr).argmax())
    nearest = int(likeness[[centre]].toarray().argmax())
    one, other = (shorten(texts[np.flatnonzero(member)[i]]) for i in (centre, nearest))
    return (
        f": {size.max()} of them hang together through texts that are nearly the same, such as "
        f"{one} and {other}"
    )


@dataclass(frozen=True)
class LabelledSplit:
    """Disjoint parts of a set, as places in it, in its order."""

    train: Int[np.ndarray, " train"]  # What probes are fitted on.
    test: Int[np.ndarray, " test"]  # What they are scored on.
    judge: Int[np.ndarray, " judge"]  # What only the independent classifier is trained on.
    groups: Int[np.ndarray, " text"]  # Each text's group; no group stands in two parts.


def text_groups(texts: LabelledSet, *, threshold: float | None) -> Int[np.ndarray, " text"]:
    """Return each text's group: texts linked by a declared group or by near-duplicate wording.

    `threshold` is that of `near_duplicate_groups`; with None declared groups alone link.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names = {name: i for i, name in enumerate(dict.fromkeys(t.group for t in texts.texts))}
    declared = np.array([names[text.group] for text in texts.texts])
    if threshold is None:
        return declared
    near = near_duplicate_groups([text.text for text in texts.texts], threshold=threshold)
    # A bipartite graph of declared groups and near-duplicate groups; its components are linked.
    n = max(int(declared.max()), int(near.max())) + 1
    shape = (2 * n, 2 * n)
    graph = coo_matrix((np.ones(len(near)), (declared, n + near)), shape=shape)
    _, component = connected_components(graph, directed=False)
    return np.unique(component[declared], return_inverse=True)[1]


def split_labelled(
    texts: LabelledSet,
    *,
    test: float | int = 0.2,
    judge: float | int = 0.0,
    seed: int = 0,
    near_duplicate: float | None = 0.5,
) -> LabelledSplit:
    """Divide texts by group, each part with the classes' shares of the whole set.

    `test` and `judge` are shares below 1 or counts, met as closely as the groups allow; the seed
    decides which groups go where; `near_duplicate` is the threshold of `text_groups`.

    Raises:
        DataError: A part would lack a class.
        ConfigError: The sizes leave nothing to train on.
    """
    n = len(texts)
    sizes = [_count(test, n, "test"), _count(judge, n, "judge")]
    if sizes[0] < 1 or sum(sizes) >= n:
        raise ConfigError(
            f"{sizes[0]} texts to test and {sizes[1]} for the judge leave nothing of {n} to test "
            "or to train on; ask for fewer."
        )
    groups = text_groups(texts, threshold=near_duplicate)
    part = _deal_groups(texts.labels, groups, sizes, np.random.default_rng(seed))
    found = [np.flatnonzero(part == number) for number in range(3)]
    for name, index in zip(("train", "test", "judge"), found, strict=True):
        if name == "judge" and sizes[1] == 0:
            continue
        lacking = set(range(len(texts.classes))) - set(texts.labels[index].tolist())
        if lacking:
            raise DataError(
                f"{texts.source}: the {name} part has no text of class "
                f"{texts.classes[min(lacking)]!r}, because groups stay together; add texts of "
                "other groups, or ask for other sizes."
            )
    return LabelledSplit(found[0], found[1], found[2], groups)


def _count(size: float | int, n: int, name: str) -> int:
    if size < 0 or (isinstance(size, float) and size > 1 and not size.is_integer()):
        raise ConfigError(f"{name} is {size}; give a share from 0 to 1, or a count.")
    return round(size * n) if size < 1 else int(size)


def _deal_groups(
    labels: np.ndarray, groups: np.ndarray, sizes: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """Give each group to the part that lacks most of its classes: 0 train, 1 test, 2 judge."""
    n_classes = int(labels.max()) + 1
    held = np.zeros((int(groups.max()) + 1, n_classes), dtype=np.int64)
    np.add.at(held, (groups, labels), 1)
    shares = held.sum(axis=0) / len(labels)
    wanted = [np.round(size * shares) for size in sizes]
    size_of = held.sum(axis=1)
    shuffled = rng.permutation(len(held))
    # Large groups while there is room for them; single texts then fill the parts exactly.
    order = shuffled[np.argsort(-size_of[shuffled], kind="stable")]
    part_of = np.zeros(len(held), dtype=np.int64)
    # A share of the large groups too, not all of them: each part takes its own share of every size.
    lacking = np.stack([np.zeros(n_classes), *wanted])
    lacking[0] = held.sum(axis=0) - lacking[1:].sum(axis=0)
    whole = np.maximum(lacking, 1e-9)
    for group in order:
        need = held[group]
        fits = (lacking[1:] >= need).all(axis=1)
        # Relative lack, so that every part fills at the same pace.
        pace = (lacking / whole)[:, need > 0].min(axis=1)
        pace[1:] = np.where(fits, pace[1:], -np.inf)
        part = int(np.argmax(pace))
        part_of[group] = part
        lacking[part] -= need
    return part_of[groups]
