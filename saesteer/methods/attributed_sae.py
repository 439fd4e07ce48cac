"""Attributed SAE regression: clustered features weighed by what they do to the model's words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from saesteer.methods.attribution.objective import Linearisation, SteeringObjective
from saesteer.methods.base import MethodInputs
from saesteer.methods.clustered_sae import chosen_clusters
from saesteer.methods.features import FeatureClusters, FeatureSelection, FeatureWeights, fit_weights
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError

N_CANDIDATES = 512


@dataclass(frozen=True)
class AttributedSaeFit:
    """The vector with every stage that led to it.

    Attributes:
        vector: The vector.
        selection: The candidates; None where any feature was allowed.
        clusters: Their clusters; None where any feature was allowed.
        weights: The fit of the last round.
        rounds: For each round the training effects of the vector it started from.
    """

    vector: SteeringVector
    selection: FeatureSelection | None
    clusters: FeatureClusters | None
    weights: FeatureWeights
    rounds: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class AttributedSae:
    """Pick few clustered features whose decoder rows fit what moves the model, at least cost.

    The target is not the activation delta but t = F^-1 g: g is the gradient of the training
    contrasts' margin with respect to a vector added at the site, F the Fisher metric of the
    model's own next-token distribution. Among vectors of equal second-order KL, t gains most
    (natural gradient, Amari 1998). Orthogonal matching pursuit in the metric F picks decoder rows
    d_j of candidate features and their weights w,

        min_w |t - sum_j w_j d_j|_F,    |w|_0 <= n_features,

    and v = sum_j w_j d_j. Because steering is strong, g is averaged over no steering and steering
    both ways at the KL target, first along difference in means and then along the round's own
    vector.

    Attributes:
        n_features: The most features.
        rounds: How often to linearise around a vector: the first time around difference in means,
            then around the last fit.
        ridge: Added to the Fisher metric's diagonal, in units of its mean.
        signs: "free", or "tied": a weight has the sign of its feature's own difference.
        candidates: "clustered", or "any" feature of the SAE, which is an ablation: most of those
            never fire on the pairs, so they are basis vectors and no explanation.
        selection: Keyword arguments of `select_features`; 512 candidates unless it says otherwise,
            because the fewer are offered the less of the target can be fitted.
        clustering: Keyword arguments of `cluster_features`.
    """

    n_features: int = 32
    rounds: int = 1
    ridge: float = 1.0
    signs: Literal["free", "tied"] = "free"
    candidates: Literal["clustered", "any"] = "clustered"
    selection: dict[str, Any] = field(default_factory=dict)
    clustering: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_features < 1 or self.rounds < 0 or not 0 <= self.ridge < np.inf:
            raise ConfigError(
                "attributed_sae: n_features must be 1 or more, rounds and ridge 0 or more."
            )
        for name, known in (("signs", ("free", "tied")), ("candidates", ("clustered", "any"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"attributed_sae: {name} {getattr(self, name)!r} is unknown; choose one of "
                    f"{', '.join(known)}."
                )
        if self.signs == "tied" and self.candidates == "any":
            raise ConfigError("attributed_sae: features that never fire have no sign to tie to.")

    @property
    def name(self) -> str:
        """What the method is called in a comparison."""
        if self.signs == "tied":
            return "attributed_tied"
        return "attributed_sae" if self.candidates == "clustered" else "attributed_any"

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the vector."""
        return self.fit(inputs).vector

    def fit(self, inputs: MethodInputs) -> AttributedSaeFit:
        """Return the vector with its features, clusters, weights and rounds.

        Raises:
            ConfigError: There is no SAE or no objective, or the metric needs a ridge.
            DataError: The filters leave no feature, or the objective has no gradient.
        """
        _, sae = inputs.needs_sae(self.name)
        objective = inputs.needs_objective(self.name)
        decoder = sae.decoder.numpy().astype(np.float64)
        if self.candidates == "any":
            selection = clusters = None
            indices, signs = np.flatnonzero(decoder.any(axis=1)), None
        else:
            selection, clusters = chosen_clusters(
                inputs, decoder, {"n_features": N_CANDIDATES, **self.selection}, self.clustering
            )
            indices, signs = clusters.kept_indices, clusters.kept_signs
        around = inputs.deltas.double().mean(dim=0).numpy()
        linear = [objective.at_zero]
        for _ in range(self.rounds):
            linear.append(objective.around(around))
            weights = self._fit(objective, linear, decoder, indices, signs)
            around = weights.direction_raw
        if not self.rounds:
            weights = self._fit(objective, linear, decoder, indices, signs)
        vector = inputs.decoded(
            dict(zip(weights.indices.tolist(), weights.weights.tolist(), strict=True)),
            self.name,
            {**asdict(self), "kl_target": objective.kl_target},
            clusters=_cluster_of(clusters),
        )
        rounds = tuple(entry.effects for entry in linear[1:])
        return AttributedSaeFit(vector, selection, clusters, weights, rounds)

    def _fit(
        self,
        objective: SteeringObjective,
        linear: list[Linearisation],
        decoder: Float[np.ndarray, "d_sae d_model"],
        indices: np.ndarray,
        signs: np.ndarray | None,
    ) -> FeatureWeights:
        metric = objective.metric.damped(self.ridge)
        gain = np.mean([entry.gain for entry in linear], axis=0)
        target = objective.metric.solve(gain, self.ridge)
        if self.signs == "free":
            return fit_weights(
                target,
                decoder[indices],
                method="omp",
                indices=indices,
                metric=metric,
                n_nonzero=self.n_features,
            )
        assert signs is not None
        whole = fit_weights(
            target, decoder[indices], method="sign_tied", signs=signs, metric=metric
        )
        lengths = np.sqrt(np.einsum("jd,de,je->j", decoder[indices], metric, decoder[indices]))
        best = np.argsort(-np.abs(whole.weights) * lengths, kind="stable")[: self.n_features]
        kept = best[whole.weights[best] != 0]
        return fit_weights(
            target,
            decoder[indices[kept]],
            method="sign_tied",
            indices=indices[kept],
            signs=signs[kept],
            metric=metric,
        )


def _cluster_of(clusters: FeatureClusters | None) -> dict[int, int]:
    if clusters is None:
        return {}
    return dict(zip(clusters.indices.tolist(), clusters.labels.tolist(), strict=True))
