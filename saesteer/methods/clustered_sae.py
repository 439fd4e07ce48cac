"""Clustered SAE regression: a sparse, named stand-in for the activation delta."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from saesteer.features import (
    FeatureClusters,
    FeatureSelection,
    FeatureWeights,
    cluster_features,
    fit_weights,
    select_features,
)
from saesteer.methods.base import MethodInputs
from saesteer.steering import SteeredFeature, SteeringVector


@dataclass(frozen=True)
class ClusteredSaeFit:
    """The vector with every stage that led to it."""

    vector: SteeringVector
    selection: FeatureSelection
    clusters: FeatureClusters
    weights: FeatureWeights


@dataclass(frozen=True)
class ClusteredSae:
    """Choose features that fire sparsely and differ, keep whole clusters, fit weights.

    The steering vector is v = sum_j w_j d_j over the kept features, d_j being decoder rows and w
    the regression of the pairs' deltas on them.

    Attributes:
        selection: Keyword arguments of `select_features`.
        clustering: Keyword arguments of `cluster_features`.
        regression: Keyword arguments of `fit_weights`.
    """

    selection: dict[str, Any] = field(default_factory=dict)
    clustering: dict[str, Any] = field(default_factory=dict)
    regression: dict[str, Any] = field(default_factory=dict)

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the vector."""
        return self.fit(inputs).vector

    def fit(self, inputs: MethodInputs) -> ClusteredSaeFit:
        """Return the vector with its features, clusters and weights.

        Raises:
            ConfigError: There is no SAE, or a setting is out of range.
            DataError: The filters leave no feature.
        """
        codes, sae = inputs.needs_sae("clustered_sae")
        decoder = sae.decoder.numpy()
        density = inputs.density if self.selection.get("max_density") is not None else None
        selected = select_features(codes, **{"density": density, **self.selection})
        clusters = cluster_features(
            codes, selected, decoder, held_out=inputs.validation_codes, **self.clustering
        )
        kept = clusters.kept_indices
        weights = fit_weights(
            inputs.deltas.numpy().astype(np.float64),
            decoder[kept],
            indices=kept,
            codes=codes,
            signs=clusters.kept_signs,
            **self.regression,
        )
        return ClusteredSaeFit(
            self._vector(inputs, clusters, weights, decoder), selected, clusters, weights
        )

    def _vector(
        self,
        inputs: MethodInputs,
        clusters: FeatureClusters,
        weights: FeatureWeights,
        decoder: Float[np.ndarray, "d_sae d_model"],
    ) -> SteeringVector:
        assert inputs.sae is not None
        cluster_of = dict(zip(clusters.indices.tolist(), clusters.labels.tolist(), strict=True))
        features = [
            SteeredFeature(index, weight, cluster_of[index], inputs.descriptions.get(index))
            for index, weight in zip(
                weights.indices.tolist(), weights.weights.tolist(), strict=True
            )
            if weight != 0.0
        ]
        features.sort(key=lambda feature: -abs(feature.weight))
        return inputs.vector(
            weights.direction_raw,
            "clustered_sae",
            features=tuple(features),
            max_act=_length_at_maximum(inputs.max_activation, features, decoder),
            sae=inputs.sae.name,
            sae_fingerprint=inputs.sae.fingerprint,
            provenance={"settings": asdict(self)},
        )


def _length_at_maximum(
    max_activation: Float[np.ndarray, " d_sae"] | None,
    features: list[SteeredFeature],
    decoder: Float[np.ndarray, "d_sae d_model"],
) -> float | None:
    if max_activation is None or not features:
        return None
    rows = [
        np.sign(feature.weight) * max_activation[feature.index] * decoder[feature.index]
        for feature in features
    ]
    length = float(np.linalg.norm(np.sum(rows, axis=0)))
    return length or None
