from __future__ import annotations

import numpy as np
import pytest

from saesteer.methods.features import cluster_features, feature_table, fit_weights
from saesteer.utils.errors import MismatchError


def fitted(groups):
    clusters = cluster_features(groups.codes, groups.selection, groups.decoder, min_separation=0.7)
    kept = clusters.kept_indices
    deltas = groups.codes.delta @ groups.decoder
    weights = fit_weights(
        deltas, groups.decoder[kept], method="sign_tied", indices=kept, codes=groups.codes
    )
    return clusters, weights


def test_the_table_lists_the_fit_with_the_greatest_weight_first(groups):
    clusters, weights = fitted(groups)
    table = feature_table(groups.selection, clusters, weights, {20: "thanking", 23: "kindness"})
    assert list(table.columns) == [
        "feature",
        "weight",
        "score",
        "cluster",
        "separation",
        "firing_positive",
        "firing_negative",
        "description",
    ]
    assert sorted(table["feature"]) == sorted(clusters.kept_indices)
    assert table["weight"].abs().is_monotonic_decreasing
    row = table.set_index("feature").loc[23]
    at = int(np.flatnonzero(groups.selection.indices == 23)[0])
    assert row["description"] == "kindness"
    assert row["score"] == groups.selection.scores[at]
    assert row["cluster"] == clusters.labels[at]
    assert row["separation"] == clusters.separation[clusters.labels[at]]
    assert row["firing_positive"] == groups.selection.firing_positive[at]
    assert row["weight"] == weights.weights[list(weights.indices).index(23)]
    assert table.set_index("feature").loc[21, "description"] == ""


def test_without_descriptions_the_column_is_there_and_empty(groups):
    clusters, weights = fitted(groups)
    table = feature_table(groups.selection, clusters, weights)
    assert set(table["description"]) == {""}


def test_weights_of_other_features_are_refused(groups):
    clusters, _ = fitted(groups)
    other = fit_weights(groups.decoder[[5]], groups.decoder[[5]], indices=np.array([5]))
    with pytest.raises(MismatchError, match="feature 5 has a weight but is not in the selection"):
        feature_table(groups.selection, clusters, other)
