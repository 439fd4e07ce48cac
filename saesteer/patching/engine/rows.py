"""The rows to run: one for every cell and pair whose patch can change anything.

They run in chunks that fit into memory, each kept in a file so that a cut-off run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.patching.engine.memory import out_of_memory
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ModelError
from saesteer.utils.progress import Task


@dataclass(frozen=True)
class Rows:
    """Patched rows that are to run."""

    layer: Int[np.ndarray, " row"]
    # The first column that the patch changes; the only one if by position.
    column: Int[np.ndarray, " row"]
    pair: Int[np.ndarray, " row"]
    # The head, feature or cluster, counted among the patch's labels; 0 for none.
    label: Int[np.ndarray, " row"]
    # The row's place in the flattened result.
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
    """Rows as a patch sees them."""

    pair: Int[Tensor, " row"]
    label: Int[Tensor, " row"]
    # The one column of each that is patched; None where all are.
    column: Int[Tensor, " row"] | None

    def some(self, which: slice) -> Touched:
        """Return some of the rows."""
        column = None if self.column is None else self.column[which]
        return Touched(self.pair[which], self.label[which], column)

    def taken(
        self, allowed: Bool[Tensor, "pair pos"], first: int, width: int
    ) -> Bool[Tensor, "row width"]:
        """Return which columns of a window are patched in every row, of those that may be."""
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


def run_chunks(
    rows: Rows,
    limit: Callable[[int], int],
    compute: Callable[[Rows], Float[np.ndarray, " row"]],
    *,
    key: str,
    store: Path | None,
    task: Task,
) -> Iterator[tuple[Rows, Float[np.ndarray, " row"]]]:
    """Compute rows in chunks, lower columns and layers first.

    Args:
        rows: All that are to run.
        limit: From a chunk's first column to the most rows that fit into memory.
        compute: Gives every row's number; rows of a chunk start at one column.
        key: All that the numbers depend on beside the rows, as a hash.
        store: A folder for finished chunks; nothing is kept if None.
        task: Told of every chunk's rows.
    """
    share = 1
    for group in rows.by_column():
        start = 0
        while start < len(group):
            size = max(1, limit(int(group.column[0])) // share)
            chunk = group[start : start + size]
            try:
                values = _once(store, key, chunk, compute)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise ModelError(
                        "not even one patched prompt fits into memory; give shorter prompts, a "
                        "smaller model or dtype bfloat16."
                    ) from error
                while limit(int(group.column[0])) // share >= len(chunk):
                    share *= 2
                continue
            task.advance(len(chunk))
            yield chunk, values
            start += len(chunk)


def _once(
    store: Path | None, key: str, rows: Rows, compute: Callable[[Rows], np.ndarray]
) -> np.ndarray:
    if store is None:
        return compute(rows)
    parts = (rows.layer, rows.column, rows.pair, rows.label, rows.by_position)
    cache = Cache(store)
    return cache.once("patch", key, *parts, compute=lambda: {"values": compute(rows)})["values"]
