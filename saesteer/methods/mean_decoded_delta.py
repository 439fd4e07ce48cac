"""Mean-decoded SAE delta: every feature's mean difference times its decoder row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector


@dataclass(repr=False, eq=False)
class MeanDecodedDelta(Method):
    """v = sum_j m_j d_j over all features, m_j being feature j's mean difference in activation.

    The part of the mean delta that the SAE sees: the decoder is linear, so this is the decoded
    mean difference of the sides' codes.

    Example:
        >>> vector = ss.MeanDecodedDelta().fit(model, train, sae=sae).vector_
    """

    _name = "mean_decoded_delta"

    def _vector(self, given: FitContext) -> SteeringVector:
        means = given.codes.mean_delta
        live = np.flatnonzero(means)
        weights = dict(zip(live.tolist(), means[live].tolist(), strict=True))
        return given.decoded(weights, self.name, self.get_params())
