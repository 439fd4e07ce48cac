"""Attributed SAE regression: clustered features weighed by what they do to the model's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from saesteer.methods.base import Method
from saesteer.methods.clustered_sae import chosen_clusters
from saesteer.methods.features import FeatureClusters, FeatureSelection, FeatureWeights, fit_weights
from saesteer.methods.fit_context import FitContext
from saesteer.methods.objective import Linearisation, SteeringObjective
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError

N_CANDIDATES = 512


@dataclass(repr=False, eq=False)
class AttributedSAE(Method):
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
        selection_: The candidates; None where any feature is allowed.
        clusters_: Their clusters; None where any feature is allowed.
        weights_: The fit of the last round.
        rounds_: For each round the training effects of the vector that it started from.

    Example:
        >>> quick = ss.ObjectiveSettings(self_generated=0, fisher_samples=2, kl_target=0.05)
        >>> method = ss.AttributedSAE(n_features=4, selection={"max_firing": 1.0})
        >>> vector = method.fit(model, train, sae=sae, objective=quick).vector_
        >>> len(method.features_)
        4
    """

    n_features: int = 32
    rounds: int = 1
    ridge: float = 1.0
    signs: Literal["free", "tied"] = "free"
    candidates: Literal["clustered", "any"] = "clustered"
    selection: dict[str, Any] = field(default_factory=dict)
    clustering: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check the settings."""
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
        """What settings files call the method."""
        if self.signs == "tied":
            return "attributed_tied"
        return "attributed_sae" if self.candidates == "clustered" else "attributed_any"

    def _vector(self, given: FitContext) -> SteeringVector:
        decoder = given.sae.decoder.numpy().astype(np.float64)
        self.selection_: FeatureSelection | None = None
        self.clusters_: FeatureClusters | None = None
        indices, signs = np.flatnonzero(decoder.any(axis=1)), None
        if self.candidates == "clustered":
            self.selection_, self.clusters_ = chosen_clusters(
                given, {"n_features": N_CANDIDATES, **self.selection}, self.clustering
            )
            indices, signs = self.clusters_.kept_indices, self.clusters_.kept_signs
        objective, around = given.objective, given.mean_delta
        linear = [objective.at_zero]
        for _ in range(self.rounds):
            linear.append(objective.around(around))
            weights = self._fit(objective, linear, decoder, indices, signs)
            around = weights.direction_raw
        if not self.rounds:
            weights = self._fit(objective, linear, decoder, indices, signs)
        self.weights_: FeatureWeights = weights
        self.rounds_: tuple[dict[str, float], ...] = tuple(one.effects for one in linear[1:])
        return given.decoded(
            weights.by_feature,
            self.name,
            {**self.get_params(), "kl_target": objective.kl_target},
            clusters=None if self.clusters_ is None else self.clusters_.label_of,
        )

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
