"""Random directions: what any push of the same cost would do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saesteer.methods.base import MethodInputs
from saesteer.steering import SteeringVector


@dataclass(frozen=True)
class RandomDirection:
    """A direction drawn uniformly from the sphere.

    Attributes:
        draw: Which draw of the inputs' seed; different draws are independent.
    """

    draw: int = 0

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the direction, as long as the mean delta."""
        delta = inputs.deltas.mean(dim=0)
        generator = torch.Generator().manual_seed(inputs.seed * 1_000_003 + self.draw)
        raw = torch.randn(len(delta), generator=generator, dtype=torch.float64)
        raw *= float(delta.norm()) / raw.norm()
        return inputs.vector(raw, "random_direction", name=f"random {self.draw}")
