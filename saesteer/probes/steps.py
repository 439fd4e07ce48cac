"""Which generated token each position of a forward pass decides."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from saesteer.steering.positions import SteeringMask


class StepMask(SteeringMask):
    """A mask that also counts: step 0 is the last prompt token, which decides token 0.

    Args:
        prompt_length: The prompt's width in columns, left padding included; worked out from
            `generate` or the forward passes if None.
    """

    def __init__(self, prompt_length: int | None = None) -> None:
        super().__init__("from_last_prompt_token", prompt_length=prompt_length)

    def steps(self, device: torch.device) -> Int[Tensor, "rows pos"]:
        """Return each column's step; below 0 are prompt tokens before the last one.

        One row stands for all, unless rows are right-padded.
        """
        start = self._start
        assert start is not None
        columns = torch.arange(self.past, self._end, device=device)
        return columns[None] - (start.to(device) if isinstance(start, Tensor) else start)
