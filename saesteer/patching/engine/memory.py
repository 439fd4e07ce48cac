"""How many prompts and patched rows fit into the memory that a run may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saesteer.models.loading import plain_model
from saesteer.patching.target import Target, heads_of
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# More tokens at once run no faster: on a CPU they leave its caches (measured on SmolLM2).
TOKENS_PER_THREAD = 256
TOKENS_ELSEWHERE = 32768
GIGABYTE = 2**30


class Memory:
    """What a run may hold beside the model.

    Half of it is for what the unpatched runs leave behind, half for the patched rows.

    Args:
        model: The model.
        width: Columns of a prompt.
        memory_gb: GiB that may be held.
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

    def pairs(self, target: Target | None) -> int:
        """Return how many pairs to hold at once."""
        kept = (self._d_model * (self._layers + 1)) + (
            2 * self._kv_heads * self._d_head * self._layers
        )
        each = kept * self._item * self._width
        if target is not None:
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
