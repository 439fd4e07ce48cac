"""Random directions: what any push of the same cost would do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector


@dataclass(repr=False, eq=False)
class RandomDirection(Method):
    """A direction drawn uniformly from the sphere, as long as the mean delta.

    Attributes:
        draw: Which draw of the fit's seed; different draws are independent.

    Example:
        >>> vector = ss.RandomDirection(draw=3).fit(model, train, site=sae.site).vector_
        >>> vector.name
        'random 3'
    """

    _name = "random_direction"
    draw: int = 0

    def _vector(self, given: FitContext) -> SteeringVector:
        delta = given.deltas.mean(dim=0)
        generator = torch.Generator().manual_seed(given.seed * 1_000_003 + self.draw)
        raw = torch.randn(len(delta), generator=generator, dtype=torch.float64)
        raw *= float(delta.norm()) / raw.norm()
        return given.vector(raw, self.name, self.get_params(), name=f"random {self.draw}")
