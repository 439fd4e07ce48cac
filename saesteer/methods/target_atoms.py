"""Steering target atoms: features that differ both in amplitude and in how often they fire."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float

from saesteer.methods.base import MethodInputs
from saesteer.methods.features.criteria import frequency_difference
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError


@dataclass(frozen=True)
class TargetAtoms:
    """v = sum of a_j d_j over the features j that pass both thresholds.

    Wang et al. 2025 (arXiv 2505.20322): a_j is feature j's mean difference in activation and f_j
    the difference between the shares of positive and of negative texts on which it fires. Kept
    are features with |a_j| and |f_j| at or above their quantiles and a_j and f_j of one sign.
    The authors take quantiles over all features; here they are over those that fire on the pairs,
    so that they mean the same for a wide SAE, most of whose features never do.

    Attributes:
        amplitude_quantile: Quantile of |a_j|, from 0 to below 1; the authors' code keeps 35%.
        frequency_quantile: Quantile of |f_j| among the features whose signs agree.
    """

    amplitude_quantile: float = 0.65
    frequency_quantile: float = 0.65

    def __post_init__(self) -> None:
        for name in ("amplitude_quantile", "frequency_quantile"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"{name}: {value:g} is not from 0 to below 1; give e.g. 0.65.")

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the vector.

        Raises:
            ConfigError: There is no SAE.
            SteeringError: No feature passes.
        """
        codes, _ = inputs.needs_sae("target_atoms")
        amplitude = codes.mean_delta
        frequency = frequency_difference(codes)
        fires = codes.firing > 0
        agrees = fires & (amplitude * frequency > 0)
        kept = agrees & _at_least(amplitude, fires, self.amplitude_quantile)
        kept &= _at_least(frequency, agrees, self.frequency_quantile)
        chosen = np.flatnonzero(kept)
        weights = dict(zip(chosen.tolist(), amplitude[chosen].tolist(), strict=True))
        return inputs.decoded(weights, "target_atoms", asdict(self))


def _at_least(
    values: Float[np.ndarray, " d_sae"], among: Bool[np.ndarray, " d_sae"], quantile: float
) -> Bool[np.ndarray, " d_sae"]:
    sizes = np.abs(values)
    if not among.any():
        return among
    return sizes >= np.quantile(sizes[among], quantile)
