"""What stands before all that passes change, computed once for many of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from saesteer.models.compat import cache_argument, find_cache, is_watched, selected_cache
from saesteer.models.forward import run_rows, takes
from saesteer.models.tokens import TokenRow, input_device, pad_rows

SHORTEST_PREFIX = 8
# Of prefixes that are kept, with their padding: 380 MB of SmolLM2's keys and values in float32.
MOST_COLUMNS = 8192

Prefix = tuple[int, ...]


def kept_prefixes(
    model: Any, rows: Sequence[TokenRow], pad: int, *, often: bool
) -> tuple[Any, list[Prefix]]:
    """Return a cache of what stands before rows' last prompt tokens, and each row's part of that.

    The cache, None where nothing is kept, has a row for each different prefix, in the order in
    which they first occur, and padding stands before them.

    Args:
        often: Whether rows are run several times, which repays a pass over prompts that no other
            row has; else prompts are kept apart where rows share them.
    """
    for prefixes in _divisions(rows, often):
        cache = prefix_cache(model, list(dict.fromkeys(prefixes)), pad)
        if cache is not None:
            return cache, prefixes
    return None, [()] * len(rows)


def _divisions(rows: Sequence[TokenRow], often: bool) -> Iterator[list[Prefix]]:
    lengths = [max(0, row.kept.index(True) - 1) for row in rows]
    own = [row.ids[:length] for row, length in zip(rows, lengths, strict=True)]
    different = {prefix: len(prefix) for prefix in own}
    tokens, columns = sum(different.values()), len(different) * max(lengths)
    # One long prefix would leave room for few rows in a batch.
    fits = columns <= min(MOST_COLUMNS, 2 * tokens)
    if fits and (often or 2 * tokens < sum(lengths)):
        yield own
    yield [rows[0].ids[: shared_prefix(rows, min(lengths))]] * len(rows)


def shared_cache(model: Any, rows: Sequence[TokenRow], limit: int) -> tuple[int, Any]:
    """Return how many first tokens all rows share, at most `limit`, and a cache of them.

    0 and None where there are none, or nothing can be kept.
    """
    shared = shared_prefix(rows, limit) if len(rows) > 1 else 0
    # An edit around the call would take what is shared for a prompt of its own.
    if not shared or is_watched(model):
        return 0, None
    with torch.no_grad():
        cache = prefix_cache(model, [rows[0].ids[:shared]])
    return (0, None) if cache is None else (shared, cache)


def behind(model: Any, cache: Any, rows: Sequence[int]) -> dict[str, Any]:
    """Return what runs a batch behind those rows of a cache; without one if it is None."""
    if cache is None:
        return {"use_cache": False}
    return {"use_cache": True, **cache_argument(model, selected_cache(cache, rows))}


def shared_prefix(rows: Sequence[TokenRow], limit: int) -> int:
    """Return how many first tokens all rows share, at most `limit`; 0 where it is not worth it."""
    first = rows[0].ids
    shared = 0
    while shared < limit and all(row.ids[shared] == first[shared] for row in rows):
        shared += 1
    return shared if shared >= SHORTEST_PREFIX else 0


def prefix_cache(model: Any, prefixes: Sequence[Prefix], pad: int = 0) -> Any:
    """Return the cache of prefixes, a row each, left-padded.

    None where there is nothing to keep, or the model's cache cannot be divided into rows or
    continued behind padding.
    """
    padded = len({len(prefix) for prefix in prefixes}) > 1
    if not any(prefixes) or not cache_argument(model, None):
        return None
    if padded and not takes(model, "position_ids"):
        return None
    rows = [TokenRow(prefix, (False,) * len(prefix)) for prefix in prefixes]
    batch = pad_rows(rows, pad, input_device(model))
    how = {"use_cache": True, "logits_to_keep": 1}
    cache = find_cache(run_rows(model, batch.input_ids, batch.attention_mask, **how))
    # More rows than there are, so that what was not selected shows.
    more = [0] * (len(prefixes) + 1)
    return None if cache is None or selected_cache(cache, more) is None else cache
