"""Encoding deltas, choosing sparse features, clustering them, fitting weights by regression."""

from saesteer.methods.features.cluster import (
    CLUSTERINGS,
    FeatureClusters,
    cluster_features,
    cluster_separation,
    feature_distance,
)
from saesteer.methods.features.codes import PairCodes, encode_pairs
from saesteer.methods.features.output_score import output_scores
from saesteer.methods.features.select import (
    CRITERIA,
    Criterion,
    FeatureSelection,
    select_features,
)
from saesteer.methods.features.solvers import REGRESSIONS
from saesteer.methods.features.table import feature_table, vector_features
from saesteer.methods.features.weights import FeatureWeights, fit_weights

__all__ = [
    "CLUSTERINGS",
    "CRITERIA",
    "REGRESSIONS",
    "Criterion",
    "FeatureClusters",
    "FeatureSelection",
    "FeatureWeights",
    "PairCodes",
    "cluster_features",
    "cluster_separation",
    "encode_pairs",
    "feature_distance",
    "feature_table",
    "fit_weights",
    "output_scores",
    "select_features",
    "vector_features",
]
