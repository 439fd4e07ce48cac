"""The rows to run: one for every cell and pair whose patch can change anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Patched rows that are to run.

    Attributes:
        layer: The layer that is patched.
        column: The first column that the patch changes.
        pair: Which pair the row belongs to.
        label: Its head, feature or cluster, counted along that axis of the result; 0 for none.
        cell: Its place in the flattened result.
        by_position: Whether a row's patch touches its first column alone.
    """

    layer: Int[np.ndarray, " row"]
    column: Int[np.ndarray, " row"]
    pair: Int[np.ndarray, " row"]
    label: Int[np.ndarray, " row"]
    cell: Int[np.ndarray, " row"]
    by_position: bool

    def __len__(self) -> int:
        return len(self.cell)

    def __getitem__(self, which: slice | Int[np.ndarray, " row"]) -> Rows:
        parts = (self.layer, self.column, self.pair, self.label, self.cell)
        return Rows(*(part[which] for part in parts), by_position=self.by_position)

    def by_column(self) -> Iterator[Rows]:
        """Yield the rows that start at the same column, lower layers first."""
        order = np.lexsort((self.pair, self.label, self.layer, self.column))
        rows = self[order]
        edges = np.flatnonzero(np.diff(rows.column)) + 1
        for start, stop in zip([0, *edges], [*edges, len(rows)], strict=True):
            if stop > start:
                yield rows[start:stop]

    def on(self, device: torch.device) -> Touched:
        """Return what a patch needs to know of the rows, as tensors."""
        pair, label, column = (
            torch.from_numpy(np.ascontiguousarray(part)).to(device)
            for part in (self.pair, self.label, self.column)
        )
        return Touched(pair, label, column if self.by_position else None)


@dataclass(frozen=True)
class Touched:
    """Rows as a patch sees them.

    Attributes:
        pair: Their pairs.
        label: Their heads, features or clusters.
        column: The one column of each that is patched; None where all are.
    """

    pair: Int[Tensor, " row"]
    label: Int[Tensor, " row"]
    column: Int[Tensor, " row"] | None

    def some(self, which: slice) -> Touched:
        """Return some of the rows."""
        column = None if self.column is None else self.column[which]
        return Touched(self.pair[which], self.label[which], column)

    def taken(
        self, allowed: Bool[Tensor, "pair pos"], first: int, width: int
    ) -> Bool[Tensor, "row width"]:
        """Return which columns of a window are patched in every row.

        Args:
            allowed: The columns that may be.
            first: The window's first column.
            width: How many it has.
        """
        taken = allowed[self.pair, first : first + width]
        if self.column is None:
            return taken
        columns = torch.arange(first, first + width, device=taken.device)
        return taken & (columns == self.column[:, None])


def plan_rows(
    shape: tuple[int, ...],
    layers: Int[np.ndarray, " layer"],
    labels: Int[np.ndarray, " label"],
    columns: Int[np.ndarray, " position"] | None,
    alive: Bool[np.ndarray, "pair pos #label"],
) -> Rows:
    """Lay out the rows of a result [pair, layer, label, position] (the last only by position).

    A row exists where the patch has a column that it may change; what it leaves alone is known
    without a run.

    Args:
        shape: The result's shape: pairs, layers, labels and, by position, positions.
        layers: The layers' numbers.
        labels: Which heads, features or clusters; empty where whole columns are patched.
        columns: The positions to patch one by one; None to patch all of a row's at once.
        alive: For every pair and label the columns where source and destination can differ.
    """
    whole = np.broadcast_to(alive, (*alive.shape[:2], shape[2]))
    if alive.shape[2] > 1 and len(labels):
        whole = alive[:, :, labels]
    if columns is None:
        pair, label = np.nonzero(whole.any(axis=1))
        first = whole.argmax(axis=1)[pair, label]
        place = np.zeros_like(first)
    else:
        pair, place, label = np.nonzero(whole[:, columns])
        first = columns[place]
    count, each = len(pair), len(layers)
    number = np.repeat(np.arange(each), count)
    pair, label, first, place = (np.tile(part, each) for part in (pair, label, first, place))
    index = (pair, number, label) if columns is None else (pair, number, label, place)
    cell = np.ravel_multi_index(index, shape) if count and each else np.zeros(0, dtype=np.int64)
    named = labels[label] if len(labels) else label
    return Rows(layers[number], first, pair, named, cell, columns is not None)
