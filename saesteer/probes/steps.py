"""Which generated token each position of a forward pass decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from saesteer.steering.positions import SteeringMask


class StepMask(SteeringMask):
    """A mask that also counts: step 0 is the last prompt token, which decides token 0.

    Args:
        prompt_length: The prompt's width in columns, left padding included; worked out from the
            forward passes if None.
    """

    def __init__(self, prompt_length: int | None = None) -> None:
        super().__init__("from_last_prompt_token", prompt_length=prompt_length)
        self._columns: Tensor | None = None

    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the columns of the forward pass about to run (a forward pre-hook)."""
        super().observe(model, args, kwargs)
        inputs = self._named(model, args, kwargs)
        tokens = inputs.get("input_ids")
        tokens = inputs["inputs_embeds"] if tokens is None else tokens
        cache = inputs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        self._columns = torch.arange(past, past + tokens.shape[1], device=tokens.device)

    def steps(self, device: torch.device) -> Int[Tensor, "rows pos"]:
        """Return each column's step; below 0 are prompt tokens before the last one.

        One row stands for all, unless rows are right-padded.
        """
        assert self._columns is not None
        start = self._start
        assert start is not None
        if isinstance(start, Tensor):
            return self._columns.to(device) - start.to(device)
        return (self._columns - start).to(device)[None]
