"""Random features: what any handful of the features that fire would do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError


@dataclass(repr=False, eq=False)
class RandomFeatures(Method):
    """Features drawn from those that fire otherwise on one side of a pair than on the other.

    A feature weighs its mean |difference| in activation between the sides, plus or minus at
    random, so that only the choice of features and their signs are left to chance.

    Attributes:
        draw: Which draw of the fit's seed; different draws are independent.
        n_features: How many features; all that fire where there are fewer.

    Example:
        >>> len(ss.RandomFeatures(n_features=5).fit(model, train, sae=sae).features_)
        5
    """

    _name = "random_features"
    draw: int = 0
    n_features: int = 32

    def check(self) -> None:
        """Check the settings."""
        if self.n_features < 1:
            raise ConfigError(f"n_features: {self.n_features} features; give 1 or more.")

    def _vector(self, given: FitContext) -> SteeringVector:
        sizes = np.asarray(abs(given.codes.delta).mean(axis=0)).ravel()
        live = np.flatnonzero(sizes)
        generator = torch.Generator().manual_seed(given.seed * 1_000_003 + self.draw)
        order = torch.randperm(len(live), generator=generator).numpy()
        chosen = live[order[: self.n_features]]
        signs = 2 * torch.randint(2, (len(chosen),), generator=generator).numpy() - 1
        weights = dict(zip(chosen.tolist(), (signs * sizes[chosen]).tolist(), strict=True))
        name = f"random features {self.draw}"
        return given.decoded(weights, self.name, self.get_params(), name=name)
