"""The beginning that rows share, computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saesteer.models.compat import cache_argument, find_cache, repeated_cache
from saesteer.models.tokens import TokenRow

SHORTEST_SHARED_PREFIX = 8


def shared_prefix(rows: Sequence[TokenRow], limit: int) -> int:
    """Return how many first tokens all rows share, at most `limit`; 0 where it is not worth it."""
    first = rows[0].ids
    shared = 0
    while shared < limit and all(row.ids[shared] == first[shared] for row in rows):
        shared += 1
    return shared if shared >= SHORTEST_SHARED_PREFIX else 0


def prefix_cache(model: Any, prefix: Sequence[int], device: torch.device) -> Any:
    """Return the cache of what rows share; None where nothing is, or it cannot be repeated."""
    if not prefix or not cache_argument(model, None):
        return None
    output = model(input_ids=torch.tensor([prefix], device=device), use_cache=True)
    cache = find_cache(output)
    return None if cache is None or repeated_cache(cache, 2) is None else cache
