from __future__ import annotations

import numpy as np

from saesteer.methods.features import cluster_features, feature_table, fit_weights


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
