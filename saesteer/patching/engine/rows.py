"""The rows to run: one for every cell and pair whose patch can change anything.

They run in chunks that fit into memory, each kept in a file so that a cut-off run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.loading import plain_model
from saesteer.patching.target import Target, heads_of
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ConfigError, ModelError
from saesteer.utils.progress import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# More tokens at once run no faster: on a CPU they leave its caches (measured on SmolLM2).
TOKENS_PER_THREAD = 256
TOKENS_ELSEWHERE = 32768
GIGABYTE = 2**30

# Of every row the layer, the pair, the label (a head, feature or cluster, counted among the patch's
# own; 0 for none), the first column that the patch changes and the last that it may, and the row's
# place in the flattened result: a numpy.recarray, whose slices numpy's types do not follow.
Rows: TypeAlias = Any
_FIELDS = ("layer", "pair", "label", "column", "last", "cell")


class Touched(NamedTuple):
    """Rows as a patch sees them."""

    pair: Int[Tensor, " row"]
    label: Int[Tensor, " row"]
    column: Int[Tensor, " row"]
    last: Int[Tensor, " row"]

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Touched:
        """Return rows as tensors."""
        parts = (np.ascontiguousarray(rows[name]) for name in cls._fields)
        return cls(*(torch.from_numpy(part).to(device) for part in parts))

    def some(self, which: slice) -> Touched:
        """Return some of the rows."""
        return Touched(*(part[which] for part in self))

    def taken(
        self, allowed: Bool[Tensor, "pair pos"], first: int, width: int
    ) -> Bool[Tensor, "row width"]:
        """Return which columns of a window are patched in every row, of those that may be."""
        columns = torch.arange(first, first + width, device=allowed.device)
        own = (columns >= self.column[:, None]) & (columns <= self.last[:, None])
        return allowed[self.pair, first : first + width] & own


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
    if columns is None:
        pair, label = np.nonzero(whole.any(axis=1))
        column = whole.argmax(axis=1)[pair, label]
        last, place = np.full_like(column, alive.shape[1] - 1), ()
    else:
        pair, at, label = np.nonzero(whole[:, columns])
        column = last = columns[at]
        place = (np.tile(at, len(layers)),)
    number = np.repeat(np.arange(len(layers)), len(pair))
    pair, label, column, last = (np.tile(one, len(layers)) for one in (pair, label, column, last))
    cells = (pair, number, label, *place)
    cell = np.ravel_multi_index(cells, shape) if len(pair) else pair
    named = labels[label] if len(labels) else label
    parts = [layers[number], pair, named, column, last, cell]
    dtype = np.dtype([(name, np.int64) for name in _FIELDS])
    return np.rec.fromarrays(parts, dtype=dtype)


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
    rows = rows[np.lexsort((rows.pair, rows.label, rows.layer, rows.column))]
    groups: list[Rows] = np.split(rows, np.flatnonzero(np.diff(rows.column)) + 1)
    share = 1
    for group in groups:
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
    parts = [np.ascontiguousarray(rows[name]) for name in _FIELDS[:-1]]
    cache = Cache(store)
    return cache.once("patch", key, *parts, compute=lambda: {"values": compute(rows)})["values"]


class Memory:
    """What a run may hold beside the model, for prompts of `width` columns.

    Half of it is for what the unpatched runs leave behind, half for the patched rows.
    """

    def __init__(self, model: TransformerBridge, width: int, memory_gb: float) -> None:
        if not 0 < memory_gb < float("inf"):
            raise ConfigError(f"memory_gb is {memory_gb}; give a finite number of GiB above 0.")
        cfg, plain = model.cfg, plain_model(model)
        self._bytes = memory_gb * GIGABYTE
        self._width = max(1, width)
        self._layers, self._d_head = int(cfg.n_layers), int(cfg.d_head)
        self._d_model = int(cfg.d_model)
        self._d_mlp = int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)
        self._heads, self._kv_heads = heads_of(model, "q"), heads_of(model, "k")
        self._item = plain.dtype.itemsize
        threads = TOKENS_PER_THREAD * torch.get_num_threads()
        self._most_tokens = threads if plain.device.type == "cpu" else TOKENS_ELSEWHERE

    def pairs(self, target: Target) -> int:
        """Return how many pairs to hold at once."""
        kept = (self._d_model * (self._layers + 1)) + (
            2 * self._kv_heads * self._d_head * self._layers
        )
        each = kept * self._item * self._width
        across = self._width if target.component == "pattern" else 0
        wide = self._heads * max(self._d_head, across)
        # Once as the source has it and once at the destination's columns.
        read = len(target.read_site[1])
        each += 2 * read * self._width * max(wide, self._d_model) * self._item
        each += 0 if target.sae is None else 4 * 4 * self._width * target.sae.d_sae
        return max(1, int(self._bytes / 2 // each))

    def rows(self, first: int) -> int:
        """Return how many rows that start at a column to run at once."""
        tokens = self._width - first
        own = 6 * self._d_model + 3 * self._d_mlp + 4 * self._heads * self._d_head
        # The past's keys and values are gathered, joined and repeated for every query head.
        past = (4 * self._kv_heads + 2 * self._heads) * self._d_head * self._width
        pattern = 3 * self._heads * tokens * self._width
        each = (own * tokens + past) * self._item + pattern * max(4, self._item)
        return max(1, min(int(self._bytes / 2 // each), self._most_tokens // tokens))

    def pairs_with_graph(self) -> int:
        """Return how many prompts a run whose graph is kept may hold.

        Counted are the tensors that a block keeps for its backward pass, about 16 of the model's
        width, 6 of the MLP's and 5 attention matrices a token, and as many again in use.
        """
        token = 16 * self._d_model + 6 * self._d_mlp + 5 * self._heads * self._width
        return max(1, int(self._bytes / (2 * 4 * token * self._layers * self._width)))

    def pairs_with_streams(self, senders: int, tokens: int) -> int:
        """Return for how many pairs every sender's residual stream fits, in about four copies."""
        return max(1, int(self._bytes / (4 * 4 * senders * tokens * self._d_model)))


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    text = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate")
    return isinstance(error, MemoryError) or any(word in text for word in words)
