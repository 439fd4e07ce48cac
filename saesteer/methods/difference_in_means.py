"""Difference in means: the mean activation delta over pairs."""

from __future__ import annotations

from dataclasses import dataclass

from saesteer.methods.base import MethodInputs
from saesteer.steering import SteeringVector


@dataclass(frozen=True)
class DifferenceInMeans:
    """The mean over pairs of positive minus negative activation.

    This is the vector of contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681)
    at the pairs' own positions.
    """

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the mean delta."""
        return inputs.vector(inputs.deltas.mean(dim=0), "difference_in_means")
