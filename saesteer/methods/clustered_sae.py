"""Clustered SAE regression: a sparse, named stand-in for the activation delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from saesteer.methods.base import Method
from saesteer.methods.features import (
    FeatureClusters,
    FeatureSelection,
    FeatureWeights,
    cluster_features,
    fit_weights,
    select_features,
)
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector


@dataclass(repr=False, eq=False)
class ClusteredSAE(Method):
    """Choose features that fire sparsely and differ, keep whole clusters, fit weights.

    The steering vector is v = sum_j w_j d_j over the kept features, d_j being decoder rows and w
    the regression of the pairs' deltas on them.

    Attributes:
        selection: Keyword arguments of `select_features`.
        clustering: Keyword arguments of `cluster_features`.
        regression: Keyword arguments of `fit_weights`.
        selection_: The candidates.
        clusters_: Their clusters.
        weights_: The fit.

    Example:
        >>> method = ss.ClusteredSAE(selection={"max_firing": 1.0}, regression={"method": "omp"})
        >>> vector = method.fit(model, train, sae=sae).vector_
        >>> set(method.features_) <= set(method.clusters_.kept_indices)
        True
    """

    _name = "clustered_sae"
    selection: dict[str, Any] = field(default_factory=dict)
    clustering: dict[str, Any] = field(default_factory=dict)
    regression: dict[str, Any] = field(default_factory=dict)

    def _vector(self, given: FitContext) -> SteeringVector:
        self.selection_: FeatureSelection
        self.clusters_: FeatureClusters
        self.selection_, self.clusters_ = chosen_clusters(given, self.selection, self.clustering)
        kept = self.clusters_.kept_indices
        self.weights_: FeatureWeights = fit_weights(
            given.deltas.numpy().astype(np.float64),
            given.sae.decoder[kept].numpy(),
            indices=kept,
            codes=given.codes,
            signs=self.clusters_.kept_signs,
            **self.regression,
        )
        weights, clusters = self.weights_.by_feature, self.clusters_.label_of
        return given.decoded(weights, self.name, self.get_params(), clusters=clusters)


def chosen(given: FitContext, selection: Mapping[str, Any]) -> FeatureSelection:
    """Choose candidate features; settings are keyword arguments of `select_features`."""
    density = given.density if selection.get("max_density") is not None else None
    return select_features(given.codes, **{"density": density, **selection})


def chosen_clusters(
    given: FitContext, selection: Mapping[str, Any], clustering: Mapping[str, Any]
) -> tuple[FeatureSelection, FeatureClusters]:
    """Choose candidate features, cluster them and judge the clusters.

    Settings are keyword arguments of `select_features` and `cluster_features`.
    """
    selected = chosen(given, selection)
    return selected, _clustered(given, selected, clustering)


def clusters_of(
    given: FitContext,
    selection: FeatureSelection,
    picked: Int[np.ndarray, " feature"],
    clustering: Mapping[str, Any],
) -> tuple[FeatureSelection, FeatureClusters]:
    """Cluster those of the candidates that were picked, and keep every cluster."""
    own = np.isin(selection.indices, picked)
    fields = ("indices", "scores", "firing_positive", "firing_negative")
    kept = replace(selection, **{name: getattr(selection, name)[own] for name in fields})
    return kept, _clustered(given, kept, {**clustering, "min_separation": 0.0})


def _clustered(
    given: FitContext, selected: FeatureSelection, clustering: Mapping[str, Any]
) -> FeatureClusters:
    return cluster_features(
        given.codes,
        selected,
        given.sae.decoder.numpy(),
        held_out=given.validation_codes,
        **clustering,
    )
