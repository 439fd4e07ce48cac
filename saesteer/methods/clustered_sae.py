"""Clustered SAE regression: a sparse, named stand-in for the activation delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from saesteer.methods.base import MethodInputs
from saesteer.methods.features import (
    FeatureClusters,
    FeatureSelection,
    FeatureWeights,
    cluster_features,
    fit_weights,
    select_features,
)
from saesteer.steering import SteeringVector


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
        selected, clusters = chosen_clusters(inputs, decoder, self.selection, self.clustering)
        kept = clusters.kept_indices
        weights = fit_weights(
            inputs.deltas.numpy().astype(np.float64),
            decoder[kept],
            indices=kept,
            codes=codes,
            signs=clusters.kept_signs,
            **self.regression,
        )
        vector = inputs.decoded(
            dict(zip(weights.indices.tolist(), weights.weights.tolist(), strict=True)),
            "clustered_sae",
            asdict(self),
            clusters=dict(zip(clusters.indices.tolist(), clusters.labels.tolist(), strict=True)),
        )
        return ClusteredSaeFit(vector, selected, clusters, weights)


def chosen_clusters(
    inputs: MethodInputs,
    decoder: Float[np.ndarray, "d_sae d_model"],
    selection: Mapping[str, Any],
    clustering: Mapping[str, Any],
) -> tuple[FeatureSelection, FeatureClusters]:
    """Choose candidate features, cluster them and judge the clusters.

    Args:
        inputs: The pairs' codes and, if measured, the features' densities.
        decoder: The SAE's decoder rows.
        selection: Keyword arguments of `select_features`.
        clustering: Keyword arguments of `cluster_features`.

    Raises:
        ConfigError: A setting is out of range.
        DataError: The filters leave no feature.
    """
    codes, _ = inputs.needs_sae("with clustered features")
    density = inputs.density if selection.get("max_density") is not None else None
    selected = select_features(codes, **{"density": density, **selection})
    clusters = cluster_features(
        codes, selected, decoder, held_out=inputs.validation_codes, **clustering
    )
    return selected, clusters
