"""Rows run in chunks that fit into memory, each kept in a file so that a cut-off run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from saesteer.patching.engine.rows import Rows
from saesteer.utils.array_cache import ArrayCache
from saesteer.utils.errors import ModelError
from saesteer.utils.progress import Task

Values = Float[np.ndarray, " row"]


def run_chunks(
    rows: Rows,
    limit: Callable[[int], int],
    compute: Callable[[Rows], Values],
    *,
    key: str,
    store: Path | None = None,
    task: Task | None = None,
) -> Iterator[tuple[Rows, Values]]:
    """Compute rows in chunks, lower columns and layers first.

    Args:
        rows: All that are to run.
        limit: From a chunk's first column to the most rows that fit into memory.
        compute: Gives every row's number; rows of a chunk start at one column.
        key: All that the numbers depend on beside the rows, as a hash.
        store: A folder for finished chunks; nothing is kept if None.
        task: Progress, told of every chunk's rows.

    Yields:
        A chunk and its numbers.

    Raises:
        ModelError: Not even one row fits into memory.
        OutputError: The folder cannot be written.
    """
    cache = None if store is None else ArrayCache(store)
    share = 1
    for group in rows.by_column():
        start = 0
        while start < len(group):
            size = max(1, limit(int(group.column[0])) // share)
            chunk = group[start : start + size]
            try:
                values = _once(cache, key, chunk, compute)
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
            if task is not None:
                task.advance(len(chunk))
            yield chunk, values
            start += len(chunk)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    text = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate")
    return isinstance(error, MemoryError) or any(word in text for word in words)


def _once(
    cache: ArrayCache | None, key: str, rows: Rows, compute: Callable[[Rows], Values]
) -> Values:
    if cache is None:
        return compute(rows)
    parts = (rows.layer, rows.column, rows.pair, rows.label, rows.by_position)
    return cache.once("patch", key, *parts, compute=lambda: {"values": compute(rows)})["values"]
