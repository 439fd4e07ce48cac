"""How many prompts and patched rows fit into the memory that a run may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saesteer.models.loading import plain_model
from saesteer.patching.components import heads_of
from saesteer.patching.engine.prepare import What
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# More tokens at once run no faster: on a CPU they leave its caches (measured on SmolLM2).
TOKENS_PER_THREAD = 256
TOKENS_ELSEWHERE = 32768
GIGABYTE = 2**30


def check_memory(memory_gb: float) -> None:
    """Check that a bound on memory leaves some.

    Raises:
        ConfigError: It does not, or is no bound.
    """
    if not 0 < memory_gb < float("inf"):
        raise ConfigError(f"memory_gb is {memory_gb}; give a finite number of GiB above 0.")


@dataclass(frozen=True)
class Budget:
    """What a run may hold beside the model.

    Half of it is for what the unpatched runs leave behind, half for the rows that climb.

    Attributes:
        memory: Bytes.
        width: Columns of a prompt.
        d_model: Width of the residual stream.
        d_mlp: Width inside an MLP.
        heads: Query heads.
        kv_heads: Key and value heads.
        d_head: Width of a head.
        layers: Blocks.
        item: Bytes of a number.
        most_tokens: The most tokens in a chunk.
    """

    memory: float
    width: int
    d_model: int
    d_mlp: int
    heads: int
    kv_heads: int
    d_head: int
    layers: int
    item: int
    most_tokens: int

    @classmethod
    def of(cls, model: TransformerBridge, width: int, memory_gb: float) -> Budget:
        """Return the budget of a model's prompts.

        Args:
            model: The model.
            width: Columns of a prompt.
            memory_gb: GiB that may be held beside the model.

        Raises:
            ConfigError: It is not above 0, or not finite.
        """
        check_memory(memory_gb)
        cfg, plain = model.cfg, plain_model(model)
        threads = TOKENS_PER_THREAD * torch.get_num_threads()
        return cls(
            memory_gb * GIGABYTE,
            width,
            int(cfg.d_model),
            int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model),
            heads_of(model, "q"),
            heads_of(model, "k"),
            int(cfg.d_head),
            int(cfg.n_layers),
            plain.dtype.itemsize,
            threads if plain.device.type == "cpu" else TOKENS_ELSEWHERE,
        )

    def pairs(self, what: What | None) -> int:
        """Return how many pairs to hold at once."""
        kept = self.d_model * (self.layers + 1) + 2 * self.kv_heads * self.d_head * self.layers
        each = kept * self.item * self.width
        if what is not None:
            wide = self.heads * max(self.d_head, self.width if what.component == "pattern" else 0)
            # Once as the source has it and once at the destination's columns.
            each += 2 * len(what.read_layers) * self.width * max(wide, self.d_model) * self.item
            each += 0 if what.sae is None else 4 * 4 * self.width * what.sae.d_sae
        return max(1, int(self.memory / 2 // each))

    def rows(self, first: int) -> int:
        """Return how many rows that start at a column to run at once."""
        tokens = self.width - first
        own = 6 * self.d_model + 3 * self.d_mlp + 4 * self.heads * self.d_head
        # The past's keys and values are gathered, joined and repeated for every query head.
        past = (4 * self.kv_heads + 2 * self.heads) * self.d_head * self.width
        pattern = 3 * self.heads * tokens * self.width
        each = (own * tokens + past) * self.item + pattern * max(4, self.item)
        return max(1, min(int(self.memory / 2 // each), self.most_tokens // tokens))
