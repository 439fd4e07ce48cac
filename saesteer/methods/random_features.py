"""Random features: what any handful of the features that fire would do."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from saesteer.methods.base import MethodInputs
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError


@dataclass(frozen=True)
class RandomFeatures:
    """Features drawn from those that fire otherwise on one side of a pair than on the other.

    A feature weighs its mean |difference| in activation between the sides, plus or minus at
    random, so that only the choice of features and their signs are left to chance.

    Attributes:
        draw: Which draw of the inputs' seed; different draws are independent.
        n_features: How many features; all that fire where there are fewer.
    """

    draw: int = 0
    n_features: int = 32

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise ConfigError(f"n_features: {self.n_features} features; give 1 or more.")

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the vector.

        Raises:
            ConfigError: There is no SAE.
            SteeringError: No feature differs between the sides of any pair.
        """
        codes, _ = inputs.needs_sae("random_features")
        sizes = np.asarray(abs(codes.delta).mean(axis=0)).ravel()
        live = np.flatnonzero(sizes)
        generator = torch.Generator().manual_seed(inputs.seed * 1_000_003 + self.draw)
        order = torch.randperm(len(live), generator=generator).numpy()
        chosen = live[order[: self.n_features]]
        signs = 2 * torch.randint(2, (len(chosen),), generator=generator).numpy() - 1
        weights = dict(zip(chosen.tolist(), (signs * sizes[chosen]).tolist(), strict=True))
        return inputs.decoded(
            weights, "random_features", asdict(self), name=f"random features {self.draw}"
        )
