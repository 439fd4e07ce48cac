"""Natural gradient: the dense direction that gains most for its divergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError


@dataclass(repr=False, eq=False)
class NaturalGradient(Method):
    """The target of attributed SAE regression itself, t = F^-1 g, in no feature's terms.

    Attributes:
        rounds: Whether to linearise around difference in means too (1) or at zero alone (0).
        ridge: Added to the Fisher metric's diagonal, in units of its mean; 0 or more.

    Example:
        >>> quick = ss.ObjectiveSettings(self_generated=0, fisher_samples=2, kl_target=0.05)
        >>> method = ss.NaturalGradient().fit(model, train, site=sae.site, objective=quick)
        >>> method.vector_.method
        'natural_gradient'
    """

    _name = "natural_gradient"
    rounds: int = 1
    ridge: float = 1.0

    def check(self) -> None:
        """Check the settings."""
        if self.rounds not in (0, 1) or not 0 <= self.ridge < np.inf:
            raise ConfigError("natural_gradient: rounds must be 0 or 1, and ridge 0 or more.")

    def _vector(self, given: FitContext) -> SteeringVector:
        objective, around = given.objective, given.mean_delta
        gains = [objective.at_zero.gain]
        gains += [objective.around(around).gain for _ in range(self.rounds)]
        raw = objective.metric.solve(np.mean(gains, axis=0), self.ridge)
        length = np.linalg.norm(raw)
        # Nothing to gain has no direction, which the vector then says.
        raw *= np.linalg.norm(around) / length if length else 0.0
        return given.vector(raw, self.name, self.get_params())
