"""What every way to a steering vector takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saesteer.activations import PairActivations
from saesteer.errors import ConfigError
from saesteer.steering import SteeringVector

if TYPE_CHECKING:
    from saesteer.features import PairCodes
    from saesteer.saes.adapter import Sae


@dataclass(frozen=True)
class MethodInputs:
    """The same evidence for every method.

    Attributes:
        activations: Both sides of the training pairs at the site to steer.
        model: The model's name.
        model_fingerprint: The model's fingerprint.
        name: What to call the vector; the pairs' name.
        codes: The pairs' SAE features, for methods that need them.
        validation_codes: Features of pairs that chose nothing, to judge clusters by.
        sae: The SAE, for methods that need it.
        max_activation: Each feature's largest activation on text, if measured.
        density: Share of text tokens on which each feature fires, if measured.
        descriptions: What features stand for, by index.
        seed: Seeds methods that draw at random.
    """

    activations: PairActivations
    model: str
    model_fingerprint: str
    name: str = "vector"
    codes: PairCodes | None = None
    validation_codes: PairCodes | None = None
    sae: Sae | None = None
    max_activation: Float[np.ndarray, " d_sae"] | None = None
    density: Float[np.ndarray, " d_sae"] | None = None
    descriptions: Mapping[int, str] = field(default_factory=dict)
    seed: int = 0

    @cached_property
    def deltas(self) -> Float[Tensor, "pair d_model"]:
        """The pairs' activation differences, computed once."""
        return self.activations.deltas

    def needs_sae(self, method: str) -> tuple[PairCodes, Sae]:
        """Return codes and SAE.

        Raises:
            ConfigError: They were not given.
        """
        if self.codes is None or self.sae is None:
            raise ConfigError(f"method {method} works on SAE features; give an SAE.")
        return self.codes, self.sae

    def vector(self, raw: Tensor | np.ndarray, method: str, **rest: Any) -> SteeringVector:
        """Return a vector at these inputs' site with their provenance."""
        return SteeringVector.from_raw(
            raw,
            site=self.activations.site,
            model=self.model,
            model_fingerprint=self.model_fingerprint,
            residual_norm=self.activations.residual_norm,
            read_positions=f"statement tokens, {self.activations.pooling}",
            method=method,
            **{"name": self.name, **rest},
        )


@runtime_checkable
class Method(Protocol):
    """A way from pairs to a steering vector; its settings are its dataclass fields."""

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the vector for these pairs, pointing to their positive side."""
        ...
