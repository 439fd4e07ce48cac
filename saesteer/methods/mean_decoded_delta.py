"""Mean-decoded SAE delta: every feature's mean difference times its decoder row."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from saesteer.methods.base import MethodInputs
from saesteer.steering import SteeringVector


@dataclass(frozen=True)
class MeanDecodedDelta:
    """v = sum_j m_j d_j over all features, m_j being feature j's mean difference in activation.

    The part of the mean delta that the SAE sees: the decoder is linear, so this is the decoded
    mean difference of the sides' codes.
    """

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the decoded mean difference.

        Raises:
            ConfigError: There is no SAE.
        """
        codes, _ = inputs.needs_sae("mean_decoded_delta")
        live = np.flatnonzero(codes.mean_delta)
        weights = dict(zip(live.tolist(), codes.mean_delta[live].tolist(), strict=True))
        return inputs.decoded(weights, "mean_decoded_delta", asdict(self))
