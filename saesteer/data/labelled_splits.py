"""Train, test and judge parts of labelled texts that share no group and no near-duplicate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from saesteer.data.labelled import LabelledSet
from saesteer.data.near_duplicates import near_duplicate_groups
from saesteer.utils.errors import ConfigError, DataError


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
    part = _deal_out(texts.labels, groups, sizes, np.random.default_rng(seed))
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


def _deal_out(
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
