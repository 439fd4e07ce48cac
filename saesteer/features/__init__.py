"""Encoding deltas, choosing sparse features, clustering them, fitting weights by regression."""

from __future__ import annotations

from saesteer.features.clustering import (
    FeatureClusters,
    cluster_features,
    cluster_separation,
    feature_distance,
)
from saesteer.features.codes import PairCodes
from saesteer.features.criteria import CRITERIA, Criterion
from saesteer.features.encoding import encode_pairs
from saesteer.features.output_score import output_scores
from saesteer.features.partitions import CLUSTERINGS
from saesteer.features.regression import FeatureWeights, fit_weights
from saesteer.features.selection import FeatureSelection, select_features
from saesteer.features.solvers import REGRESSIONS
from saesteer.features.table import feature_table, vector_features

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
