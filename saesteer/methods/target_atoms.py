"""Steering target atoms: features that differ both in amplitude and in how often they fire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from saesteer.methods.base import Method
from saesteer.methods.features.select import frequency_difference
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError


@dataclass(repr=False, eq=False)
class TargetAtoms(Method):
    """v = sum of a_j d_j over the features j that pass both thresholds.

    Wang et al. 2025 (arXiv 2505.20322): a_j is feature j's mean difference in activation and f_j
    the difference between the shares of positive and of negative texts on which it fires. Kept
    are features with |a_j| and |f_j| at or above their quantiles and a_j and f_j of one sign.
    The authors take quantiles over all features; here they are over those that fire on the pairs,
    so that they mean the same for a wide SAE, most of whose features never do.

    Attributes:
        amplitude_quantile: Quantile of |a_j|, from 0 to below 1; the authors' code keeps 35%.
        frequency_quantile: Quantile of |f_j| among the features whose signs agree.

    Example:
        >>> atoms = ss.TargetAtoms(amplitude_quantile=0.0, frequency_quantile=0.0)
        >>> vector = atoms.fit(model, train, sae=sae).vector_
    """

    _name = "target_atoms"
    amplitude_quantile: float = 0.65
    frequency_quantile: float = 0.65

    def check(self) -> None:
        """Check the settings."""
        for name, value in self.get_params().items():
            if not 0 <= value < 1:
                raise ConfigError(f"{name}: {value:g} is not from 0 to below 1; give e.g. 0.65.")

    def _vector(self, given: FitContext) -> SteeringVector:
        codes = given.codes
        amplitude = codes.mean_delta
        frequency = frequency_difference(codes)
        fires = codes.firing > 0
        agrees = fires & (amplitude * frequency > 0)
        kept = agrees & _at_least(amplitude, fires, self.amplitude_quantile)
        kept &= _at_least(frequency, agrees, self.frequency_quantile)
        chosen = np.flatnonzero(kept)
        weights = dict(zip(chosen.tolist(), amplitude[chosen].tolist(), strict=True))
        return given.decoded(weights, self.name, self.get_params())


def _at_least(
    values: Float[np.ndarray, " d_sae"], among: Bool[np.ndarray, " d_sae"], quantile: float
) -> Bool[np.ndarray, " d_sae"]:
    sizes = np.abs(values)
    if not among.any():
        return among
    return sizes >= np.quantile(sizes[among], quantile)
