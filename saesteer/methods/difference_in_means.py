"""Difference in means: the mean activation delta over pairs."""

from __future__ import annotations

from dataclasses import dataclass

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector


@dataclass(repr=False, eq=False)
class DifferenceInMeans(Method):
    """The mean over pairs of positive minus negative activation.

    This is the vector of contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681)
    at the pairs' own positions.

    Example:
        >>> vector = ss.DifferenceInMeans().fit(model, train, site=sae.site).vector_
        >>> vector.method
        'difference_in_means'
    """

    _name = "difference_in_means"

    def _vector(self, given: FitContext) -> SteeringVector:
        return given.vector(given.deltas.mean(dim=0), self.name)
