"""What every way to a steering vector takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saesteer.models.pair_activations import PairActivations
from saesteer.models.pooling import pool
from saesteer.saes.labels import PLACE_KEY
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from saesteer.methods.attribution.objective import SteeringObjective
    from saesteer.methods.features import PairCodes
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
        answers: The residual stream at the answer letters of A/B questions about the same pairs,
            matching letter and other letter, as `answer_pairs` reads it.
        output_scores: Each feature's output score (Arad et al. 2025), NaN where not computed.
        objective: What steering should do to training texts, with its derivatives.
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
    answers: PairActivations | None = None
    output_scores: Float[np.ndarray, " d_sae"] | None = None
    objective: SteeringObjective | None = None

    @cached_property
    def deltas(self) -> Float[Tensor, "pair d_model"]:
        """The pairs' activation differences, computed once."""
        return self.activations.deltas

    def sides(
        self,
    ) -> tuple[Float[np.ndarray, "pair d_model"], Float[np.ndarray, "pair d_model"]]:
        """Return the positive and the negative sides, each text pooled, in float64.

        Raises:
            DataError: An activation is not a finite number.
        """
        given = self.activations
        both = []
        for side, name in ((given.positive, "positive"), (given.negative, "negative")):
            pooled = pool(side, given.pooling).numpy().astype(np.float64)
            bad = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
            if bad.size:
                raise DataError(
                    f"the activations of the {name} side of pair {bad[0] + 1} are not all finite "
                    "numbers; read them in float32 or leave that pair out."
                )
            both.append(pooled)
        return both[0], both[1]

    def needs_sae(self, method: str) -> tuple[PairCodes, Sae]:
        """Return codes and SAE.

        Raises:
            ConfigError: They were not given.
        """
        if self.codes is None or self.sae is None:
            raise ConfigError(f"method {method} works on SAE features; give an SAE.")
        return self.codes, self.sae

    def needs_objective(self, method: str) -> SteeringObjective:
        """Return the objective.

        Raises:
            ConfigError: It was not given.
        """
        if self.objective is None:
            raise ConfigError(
                f"method {method} needs to know what steering does to the model's words; give an "
                "objective."
            )
        return self.objective

    def vector(self, raw: Tensor | np.ndarray, method: str, **rest: Any) -> SteeringVector:
        """Return a vector at these inputs' site with their provenance."""
        return SteeringVector.from_raw(
            raw,
            site=self.activations.site,
            model=self.model,
            model_fingerprint=self.model_fingerprint,
            residual_norm=self.activations.residual_norm,
            method=method,
            **{
                "name": self.name,
                "read_positions": f"statement tokens, {self.activations.pooling}",
                **rest,
            },
        )

    def decoded(
        self,
        weights: Mapping[int, float],
        method: str,
        settings: Mapping[str, Any],
        *,
        clusters: Mapping[int, int] | None = None,
        **rest: Any,
    ) -> SteeringVector:
        """Return sum_j w_j d_j over SAE features, d_j being decoder rows.

        Args:
            weights: Each feature's weight; features of weight 0 are left out.
            method: How the weights came about.
            settings: The method's settings, for the vector's provenance.
            clusters: Each feature's cluster, where there are clusters.
            **rest: Other fields of the vector.

        Raises:
            ConfigError: There is no SAE.
            SteeringError: No weight differs from 0.
        """
        _, sae = self.needs_sae(method)
        kept = {index: float(weight) for index, weight in weights.items() if weight}
        indices = sorted(kept, key=lambda index: (-abs(kept[index]), index))
        rows = sae.decoder[indices].numpy().astype(np.float64)
        sizes = np.array([kept[index] for index in indices])
        length = None
        if self.max_activation is not None and indices:
            at_maximum = np.sign(sizes) * self.max_activation[indices]
            length = float(np.linalg.norm(at_maximum @ rows)) or None
        return self.vector(
            sizes @ rows,
            method,
            features=tuple(
                SteeredFeature(
                    index, kept[index], (clusters or {}).get(index), self.descriptions.get(index)
                )
                for index in indices
            ),
            max_act=length,
            sae=sae.name,
            sae_fingerprint=sae.fingerprint,
            provenance={"settings": dict(settings), PLACE_KEY: sae.neuronpedia_id},
            **rest,
        )


@runtime_checkable
class Method(Protocol):
    """A way from pairs to a steering vector; its settings are its dataclass fields."""

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the vector for these pairs, pointing to their positive side."""
        ...
