"""Encoding deltas, choosing sparse features, clustering them, fitting weights by regression."""

from saesteer.methods.features.cluster import (
    CLUSTERINGS,
    ClusteringSettings,
    FeatureClusters,
    cluster_features,
    feature_distance,
)
from saesteer.methods.features.codes import PairCodes, encode_pairs
from saesteer.methods.features.output_score import output_scores
from saesteer.methods.features.select import (
    CRITERIA,
    Criterion,
    FeatureSelection,
    SelectionSettings,
    select_features,
)
from saesteer.methods.features.solvers import REGRESSIONS, RegressionSettings
from saesteer.methods.features.vectors import feature_table, vector_features, vector_of_features
from saesteer.methods.features.weights import FeatureWeights, fit_weights

__all__ = [
    "CLUSTERINGS",
    "CRITERIA",
    "REGRESSIONS",
    "ClusteringSettings",
    "Criterion",
    "FeatureClusters",
    "FeatureSelection",
    "FeatureWeights",
    "PairCodes",
    "RegressionSettings",
    "SelectionSettings",
    "cluster_features",
    "encode_pairs",
    "feature_distance",
    "feature_table",
    "fit_weights",
    "output_scores",
    "select_features",
    "vector_features",
    "vector_of_features",
]
