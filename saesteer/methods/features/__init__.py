"""Encoding deltas, choosing sparse features, clustering them, fitting weights by regression."""

from __future__ import annotations

from saesteer.methods.features.clustering import (
    FeatureClusters,
    cluster_features,
    cluster_separation,
    feature_distance,
)
from saesteer.methods.features.codes import PairCodes
from saesteer.methods.features.criteria import CRITERIA, Criterion
from saesteer.methods.features.encoding import encode_pairs
from saesteer.methods.features.output_score import output_scores
from saesteer.methods.features.partitions import CLUSTERINGS
from saesteer.methods.features.regression import FeatureWeights, fit_weights
from saesteer.methods.features.selection import FeatureSelection, select_features
from saesteer.methods.features.solvers import REGRESSIONS
from saesteer.methods.features.table import feature_table, vector_features

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
