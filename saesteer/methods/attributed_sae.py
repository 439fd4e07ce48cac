"""Attributed SAE regression: clustered features weighed by what they do to the model's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from saesteer.methods.base import Method
from saesteer.methods.clustered_sae import chosen_clusters
from saesteer.methods.features import FeatureClusters, FeatureSelection, FeatureWeights, fit_weights
from saesteer.methods.fit_context import FitContext
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

    n_features: Annotated[int, Field(ge=1)] = 32
    rounds: Annotated[int, Field(ge=0)] = 1
    ridge: Annotated[float, Field(ge=0)] = 1.0
    signs: Literal["free", "tied"] = "free"
    candidates: Literal["clustered", "any"] = "clustered"
    selection: dict[str, Any] = field(default_factory=dict)
    clustering: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check the settings."""
        super().check()
        if self.signs == "tied" and self.candidates == "any":
            raise ConfigError("AttributedSAE: features that never fire have no sign to tie to.")

    @property
    def name(self) -> str:
        """What settings files call the method."""
        if self.signs == "tied":
            return "attributed_tied"
        return "attributed_sae" if self.candidates == "clustered" else "attributed_any"

    def _vector(self, given: FitContext) -> SteeringVector:
        indices, signs = self._candidates(given)
        rows = given.sae.decoder[indices].numpy().astype(np.float64)
        objective, around = given.objective, given.mean_delta
        metric = objective.metric.damped(self.ridge)
        linear = [objective.at_zero]
        for number in range(max(self.rounds, 1)):
            if number < self.rounds:
                linear.append(objective.around(around))
            gain = np.mean([one.gain for one in linear], axis=0)
            target = objective.metric.solve(gain, self.ridge)
            self.weights_: FeatureWeights = self._fit(target, metric, rows, indices, signs)
            around = self.weights_.direction_raw
        self.rounds_: tuple[dict[str, float], ...] = tuple(one.effects for one in linear[1:])
        return given.decoded(
            self.weights_.by_feature,
            self.name,
            {**self.get_params(), "kl_target": objective.kl_target},
            clusters=None if self.clusters_ is None else self.clusters_.label_of,
        )

    def _candidates(self, given: FitContext) -> tuple[np.ndarray, np.ndarray]:
        """Return the features to pick from, and the sign of each one's own difference."""
        self.selection_: FeatureSelection | None = None
        self.clusters_: FeatureClusters | None = None
        if self.candidates == "any":
            indices = np.flatnonzero(given.sae.decoder.numpy().any(axis=1))
            return indices, np.ones(len(indices))
        selection = {"n_features": N_CANDIDATES, **self.selection}
        self.selection_, self.clusters_ = chosen_clusters(given, selection, self.clustering)
        return self.clusters_.kept_indices, self.clusters_.kept_signs

    def _fit(
        self,
        target: Float[np.ndarray, " d_model"],
        metric: Float[np.ndarray, "d_model d_model"],
        rows: Float[np.ndarray, "feature d_model"],
        indices: np.ndarray,
        signs: np.ndarray,
    ) -> FeatureWeights:
        """Fit the target in the metric with at most `n_features` of the candidates."""
        n, fit = self.n_features, partial(fit_weights, target, metric=metric)
        if self.signs == "free":
            return fit(rows, method="omp", indices=indices, n_nonzero=n)
        # Fit with all of them, keep those of the greatest length in the metric, and fit again.
        whole = fit(rows, method="sign_tied", signs=signs).weights
        lengths = np.sqrt(np.einsum("jd,de,je->j", rows, metric, rows))
        best = np.argsort(-np.abs(whole) * lengths, kind="stable")[:n]
        kept = best[whole[best] != 0]
        return fit(rows[kept], method="sign_tied", indices=indices[kept], signs=signs[kept])
