"""Attributed SAE regression: clustered features weighed by what they do to the model's words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from saesteer.methods.base import Method
from saesteer.methods.clustered_sae import chosen, chosen_clusters, clusters_of
from saesteer.methods.features import FeatureClusters, FeatureSelection, FeatureWeights, fit_weights
from saesteer.methods.fit_context import FitContext
from saesteer.methods.objective import linearised
from saesteer.methods.sites import at_sites, joint
from saesteer.saes.adapter import Sae
from saesteer.steering import SteeringVector

N_CANDIDATES = 512
# Of wider SAEs the features that differ most between the sides: each is a row of d_model in memory.
MOST_FIRING = 8192

# From the picked features to those that were clustered, and their clusters.
Clustered = Callable[[np.ndarray], tuple[FeatureSelection, FeatureClusters]]


@dataclass(repr=False, eq=False)
class AttributedSAE(Method):
    """Pick few features whose decoder rows fit what moves the model's words, at least cost.

    The target is not the activation delta but t = F^-1 g: g is the gradient of the training
    contrasts' margins with respect to a vector added at the site (what the model, asked to be
    either side, would rather say as the one than as the other; and the statements' likelihood), F
    the Fisher metric of the model's own next-token distribution. Among vectors of equal
    second-order KL, t gains most (natural gradient, Amari 1998). Orthogonal matching pursuit in
    the metric F picks decoder rows d_j of candidate features and their weights w,

        min_w |t - sum_j w_j d_j|_F,    |w|_0 <= n_features,

    and v = sum_j w_j d_j. Because steering is strong, g is averaged over no steering and steering
    both ways at the KL target, along what the rounds before have found.

    With SAEs at further sites (`also`), g and F are those of what is added at all sites at once,
    side by side, and a decoder row of one site is zero at the others: `n_features` are picked from
    all SAEs together, and the vector, at the first SAE's site, has a part at each other site where
    any was.

    Attributes:
        n_features: The most features.
        rounds: How often to linearise around the fit of the round before.
        ridge: Added to the Fisher metric's diagonal, in units of its mean.
        signs: "free", or "tied": a weight has the sign of its feature's own difference.
        candidates: Which features may be picked: "firing", all that fire on the pairs as
            `selection` says (at most 8192), and the picked ones are clustered; "clustered", the
            512 that differ most between the sides and lie in clusters that tell them apart.
        selection: Keyword arguments of `select_features`.
        clustering: Keyword arguments of `cluster_features`.
        also: SAEs at further sites, or their names or folders.
        selection_: The first SAE's features that were clustered.
        clusters_: Their clusters.
        weights_: The fit of the last round; the features of a further SAE are counted on from those
            of the SAE before.
        rounds_: For each round the training effects of the vector that it started from.

    Example:
        >>> quick = ss.ObjectiveSettings(prompted=0, fisher_samples=2, kl_target=0.05)
        >>> method = ss.AttributedSAE(n_features=4, selection={"max_firing": 1.0})
        >>> vector = method.fit(model, train, sae=sae, objective=quick).vector_
        >>> len(method.features_)
        4
    """

    n_features: Annotated[int, Field(ge=1)] = 32
    rounds: Annotated[int, Field(ge=0)] = 1
    ridge: Annotated[float, Field(ge=0)] = 1.0
    signs: Literal["free", "tied"] = "free"
    candidates: Literal["firing", "clustered"] = "firing"
    selection: dict[str, Any] = field(default_factory=dict)
    clustering: dict[str, Any] = field(default_factory=dict)
    also: tuple[str | Sae, ...] = ()

    @property
    def name(self) -> str:
        """What settings files call the method."""
        return "attributed_tied" if self.signs == "tied" else "attributed_sae"

    def _vector(self, given: FitContext) -> SteeringVector:
        from scipy.linalg import block_diag

        contexts, objective = joint(given, self.also)
        indices, signs, clustered = zip(*map(self._offered, contexts), strict=True)
        # Where each SAE's features begin, and the last one's end, in the count of all.
        bounds = np.cumsum([0, *(one.sae.d_sae for one in contexts)]).tolist()
        numbers = np.concatenate([start + own for start, own in zip(bounds, indices, strict=False)])
        rows = np.asarray(
            block_diag(
                *(one.sae.decoder[own].numpy() for one, own in zip(contexts, indices, strict=True))
            ),
            dtype=np.float64,
        )
        metric = objective.metric.damped(self.ridge)

        self.weights_: FeatureWeights

        def fit(gain: np.ndarray) -> np.ndarray:
            target = objective.metric.solve(gain, self.ridge)
            self.weights_ = self._fit(target, metric, rows, numbers, np.concatenate(signs))
            return self.weights_.direction_raw

        raw, linear = linearised(objective, self.rounds, fit)
        self.rounds_: tuple[dict[str, float], ...] = tuple(one.effects for one in linear[1:])
        also = tuple(getattr(one, "name", one) for one in self.also)
        settings = {**self.get_params(), "also": also, "kl_target": objective.kl_target}
        self.selection_: FeatureSelection
        self.clusters_: FeatureClusters

        def decoded(one: FitContext, _: np.ndarray) -> SteeringVector:
            at = contexts.index(one)
            start, end = bounds[at : at + 2]
            weights = self.weights_.by_feature.items()
            weights = {i - start: weight for i, weight in weights if weight and start <= i < end}
            selection, clusters = clustered[at](np.array(list(weights)))
            if one is given:
                self.selection_, self.clusters_ = selection, clusters
            return one.decoded(weights, self.name, settings, clusters=clusters.label_of)

        return at_sites(contexts, raw, decoded)

    def _offered(self, given: FitContext) -> tuple[np.ndarray, np.ndarray, Clustered]:
        """Return an SAE's features to pick from, and the sign of each one's own difference.

        And what clusters those that are picked.
        """
        if self.candidates == "clustered":
            selection = {"n_features": N_CANDIDATES, **self.selection}
            found = chosen_clusters(given, selection, self.clustering)
            return found[1].kept_indices, found[1].kept_signs, lambda picked: found
        selected = chosen(given, {"n_features": MOST_FIRING, **self.selection})
        written = given.sae.decoder[selected.indices].any(dim=1).numpy()
        return (
            selected.indices[written],
            selected.signs[written],
            lambda picked: clusters_of(given, selected, picked, self.clustering),
        )

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
