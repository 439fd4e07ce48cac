"""Dividing a graph of near-duplicates, where need be by leaving out what links its ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saesteer.data.near_duplicates import components

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# A part that holds this share of what was asked for it is large enough.
ENOUGH = 0.5
_STARTS = 4


class Division:
    """Items to be divided into parts so that no near-duplicates stand in different parts.

    Items that are linked, over however many others, go to one part. A family, whose members are
    near one and the same text, can only be kept so; a chain of families can be cut by leaving out
    the few items that link them.

    Args:
        near: Which items are near-duplicates [item, item], symmetric.
        sides: How many positive and negative texts an item holds.
        targets: How many of each side a part should get; met as closely as linked items allow.
        seed: Decides between items that are as good.
    """

    def __init__(
        self,
        near: csr_matrix,
        sides: Int[np.ndarray, "item side"],
        targets: Float[np.ndarray, " part"],
        seed: int,
    ) -> None:
        self.near, self.sides, self.targets, self.seed = near, sides, targets, seed

    def divide(self, *, cut: bool = False) -> Int[np.ndarray, " item"]:
        """Return each item's part, -1 for those left out.

        With `cut` chains are cut until every part is large enough.
        """
        rng = np.random.default_rng(self.seed)
        kept = np.ones(len(self.sides), dtype=bool)
        best = current = self._place(kept)
        while cut and not self.large_enough(current):
            links = _links(self.near, kept, rng)
            if links is None:
                break
            kept[links] = False
            current = self._place(kept)
            best = max(best, current, key=self.worth)
        return best

    def counts(self, parts: Int[np.ndarray, " item"]) -> Int[np.ndarray, "part side"]:
        """Count the texts of each side in each part."""
        found = np.zeros((len(self.targets), self.sides.shape[1]), dtype=np.int64)
        np.add.at(found, parts[parts >= 0], self.sides[parts >= 0])
        return found

    def worth(self, parts: Int[np.ndarray, " item"]) -> tuple[float, int]:
        """Return the emptiest part's share of its target, up to `ENOUGH`, and how many pairs."""
        pairs, wanted = self.counts(parts).min(axis=1), self.targets > 0
        share = float((pairs[wanted] / self.targets[wanted]).min())
        return min(ENOUGH, share), int(pairs.sum())

    def large_enough(self, parts: Int[np.ndarray, " item"]) -> bool:
        return self.worth(parts)[0] >= ENOUGH

    def _place(self, kept: np.ndarray) -> np.ndarray:
        """Deal the kept items out, linked ones together, then put back those that fit after all."""
        near, places = self.near, np.flatnonzero(kept)
        label = components(near[places][:, places])
        held = np.zeros((label.max() + 1, self.sides.shape[1]), dtype=np.int64)
        np.add.at(held, label, self.sides[places])
        shuffled = np.random.default_rng(self.seed).permutation(len(held))
        order = shuffled[np.argsort(-held[shuffled].sum(axis=1), kind="stable")]

        def dealt(targets: np.ndarray) -> np.ndarray:
            parts = np.full(len(self.sides), -1)
            parts[places] = _deal_out(held, order, targets)[label]
            return parts

        parts = dealt(self.targets)
        # Where one side's lumps overfill a part, the other side is to follow it there.
        reached = self.counts(parts)
        lumpy = np.abs(reached - self.targets[:, None]).sum(axis=0).argmax()
        parts = max(parts, dealt(reached[:, lumpy]), key=self.worth)
        for item in np.flatnonzero(~kept):
            around = parts[near.indices[near.indptr[item] : near.indptr[item + 1]]]
            around = np.unique(around[around >= 0])
            if len(around) == 1:
                parts[item] = around[0]
        return parts


def _deal_out(held: np.ndarray, order: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Give each component, the largest first, to the part that lacks most; none stays empty."""
    part_of = np.empty(len(held), dtype=np.int64)
    lacking = np.repeat(targets[:, None].astype(float), held.shape[1], axis=1)
    wanted = targets > 0
    empty = lacking > 0
    to_come = (held > 0).sum(axis=0)
    for component in order:
        has = held[component] > 0
        must_fill = has & (to_come <= empty.sum(axis=0))
        allowed = empty[:, must_fill].any(axis=1) if must_fill.any() else wanted
        room = np.where(has, lacking - held[component], np.inf).min(axis=1)
        part = int(np.argmax(np.where(allowed, room, -np.inf)))
        part_of[component] = part
        lacking[part] -= held[component]
        empty[part, has] = False
        to_come -= has
    return part_of


def _links(near: csr_matrix, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Return the items whose loss divides the largest component that can be divided cheaply."""
    places = np.flatnonzero(kept)
    label = components(near[places][:, places])
    size = np.bincount(label)
    for component in np.argsort(-size, kind="stable"):
        if size[component] < 3:
            return None
        members = places[label == component]
        cheapest = _separator(near[members][:, members], rng)
        if cheapest is not None:
            return members[cheapest]
    return None


def _separator(near: csr_matrix, rng: np.random.Generator) -> np.ndarray | None:
    """Return members whose loss divides a connected graph, few against the smaller side.

    From several starts a region is grown by the member that adds the fewest neighbours; the best
    border of any region on the way counts. None where more would be lost than cut off.
    """
    n = len(near.indptr) - 1
    neighbours = [near.indices[near.indptr[i] : near.indptr[i + 1]] for i in range(n)]
    degree = np.diff(near.indptr)
    starts = {int(degree.argmin()), *rng.integers(n, size=_STARTS - 1).tolist()}
    best: tuple[float, np.ndarray] | None = None
    for start in sorted(starts):
        inside, border = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        # How many of a member's neighbours, itself too, are neither inside nor on the border.
        fresh = degree.astype(np.int64)
        border[start] = True
        fresh[neighbours[start]] -= 1
        for grown in range(1, n):
            on_border = np.flatnonzero(border)
            taken = on_border[np.argmin(fresh[on_border])]
            border[taken], inside[taken] = False, True
            for other in neighbours[taken]:
                if not inside[other] and not border[other]:
                    border[other] = True
                    fresh[neighbours[other]] -= 1
            lost = int(border.sum())
            smaller = min(grown, n - grown - lost)
            if smaller <= 0:
                break
            if lost < smaller and (best is None or lost / smaller < best[0]):
                best = (lost / smaller, np.flatnonzero(border))
    return None if best is None else best[1]
