"""Natural gradient: the dense direction that gains most for its divergence."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from saesteer.methods.base import MethodInputs
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError


@dataclass(frozen=True)
class NaturalGradient:
    """The target of attributed SAE regression itself, t = F^-1 g, in no feature's terms.

    Attributes:
        rounds: Whether to linearise around difference in means too (1) or at zero alone (0).
        ridge: Added to the Fisher metric's diagonal, in units of its mean; 0 or more.
    """

    rounds: int = 1
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if self.rounds not in (0, 1) or not 0 <= self.ridge < np.inf:
            raise ConfigError("natural_gradient: rounds must be 0 or 1, and ridge 0 or more.")

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the direction, as long as the mean delta.

        Raises:
            ConfigError: There is no objective.
        """
        objective = inputs.needs_objective("natural_gradient")
        around = inputs.deltas.double().mean(dim=0).numpy()
        gains = [objective.at_zero.gain]
        gains += [objective.around(around).gain for _ in range(self.rounds)]
        raw = objective.metric.solve(np.mean(gains, axis=0), self.ridge)
        length = np.linalg.norm(raw)
        # Nothing to gain has no direction, which the vector then says.
        raw *= np.linalg.norm(around) / length if length else 0.0
        return inputs.vector(raw, "natural_gradient", provenance={"settings": asdict(self)})
