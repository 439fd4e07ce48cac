from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from sklearn.metrics import adjusted_rand_score, roc_auc_score, silhouette_score

from saesteer.methods.features import (
    CLUSTERINGS,
    PairCodes,
    cluster_features,
    feature_distance,
    feature_table,
    fit_weights,
)
from saesteer.utils.errors import DataError, MismatchError


@pytest.mark.parametrize("method", list(CLUSTERINGS))
def test_planted_groups_are_recovered_with_their_sign_and_those_that_do_not_separate_dropped(
    groups, method: str
):
    found = cluster_features(
        groups.codes, groups.selection, groups.decoder, method=method, min_separation=0.7
    )
    assert adjusted_rand_score(groups.truth, found.labels) == 1
    assert len(found.separation) == 3
    assert set(found.kept_indices) == set(groups.selection.indices[groups.truth != 2])
    assert found.note == ""
    # The numbering follows the selection's order, so group 0 is cluster 0 and so on.
    assert found.kept == (0, 1)
    np.testing.assert_array_equal(found.signs[groups.truth == 0], 1)
    np.testing.assert_array_equal(found.signs[groups.truth == 1], -1)


def test_the_distance_is_the_stated_formula(groups):
    indices = groups.selection.indices
    distance = feature_distance(groups.codes, indices, groups.decoder, firing_weight=0.3)
    correlation = np.corrcoef(groups.codes.stacked(indices).T)
    rows = groups.decoder[indices]
    lengths = np.linalg.norm(rows, axis=1)
    cosine = rows @ rows.T / np.outer(lengths, lengths)
    expected = 0.3 * (1 - correlation) / 2 + 0.7 * (1 - cosine) / 2
    np.testing.assert_allclose(distance, expected, atol=1e-12)
    assert (np.diag(distance) == 0).all()

    # A feature that never varies has a distance all the same.
    positive = groups.codes.positive.toarray()
    negative = groups.codes.negative.toarray()
    positive[:, 20] = negative[:, 20] = 1 / 3
    codes = PairCodes(positive, negative)
    distance = feature_distance(codes, np.array([20, 21, 22]), groups.decoder, firing_weight=1.0)
    np.testing.assert_allclose(distance[0, 1:], 0.5)


def test_the_number_of_clusters_is_the_silhouette_s(groups):
    found = cluster_features(groups.codes, groups.selection, groups.decoder, max_clusters=8)
    assert list(found.silhouette) == list(range(2, 9))
    assert max(found.silhouette, key=lambda k: found.silhouette[k]) == 3
    distance = feature_distance(groups.codes, groups.selection.indices, groups.decoder)
    expected = silhouette_score(distance, groups.truth, metric="precomputed")
    assert found.silhouette[3] == pytest.approx(expected)

    # The linkage cut at a number gives the same clusters.
    found = cluster_features(groups.codes, groups.selection, groups.decoder, n_clusters=5)
    cut = fcluster(found.linkage, 5, criterion="maxclust")
    assert adjusted_rand_score(cut, found.labels) == 1
    assert len(found.separation) == 5


def test_separation_is_the_auroc_of_the_signed_standardised_sum_also_on_held_out_pairs(groups):
    given = (groups.codes, groups.selection, groups.decoder)
    found = cluster_features(*given)
    sides = groups.codes.stacked(groups.selection.indices)
    members = found.labels == 1
    text = (sides / sides.std(axis=0) * found.signs)[:, members].sum(axis=1)
    assert found.separation[1] == pytest.approx(roc_auc_score(groups.codes.labels, text))
    # Where the sides are swapped, what separated before is upside down.
    swapped = PairCodes(groups.codes.negative.toarray(), groups.codes.positive.toarray())
    held = cluster_features(*given, held_out=swapped)
    np.testing.assert_allclose(held.separation, 1 - found.separation)
    with pytest.raises(MismatchError, match="held_out"):
        cluster_features(*given, held_out=swapped.columns(range(50)))


def test_when_no_cluster_separates_the_best_is_kept_and_said_so(groups):
    found = cluster_features(groups.codes, groups.selection, groups.decoder, min_separation=1.0)
    best = int(found.separation.argmax())
    assert found.kept == (best,)
    assert f"cluster {best}" in found.note
    assert found.kept_signs.size == found.kept_indices.size == 4


def test_hdbscan_noise_becomes_marked_clusters_of_one_after_the_others(groups, selection_of):
    # Two more features, each firing on its own and pointing away from all the others.
    rng = np.random.default_rng(3)
    positive, negative = groups.codes.positive.toarray(), groups.codes.negative.toarray()
    positive[:, [1, 2]] = rng.random((40, 2)) * (rng.random((40, 2)) < 0.3)
    codes = PairCodes(positive, negative)
    selection = selection_of(codes, [1, *range(20, 32), 2])
    decoder = groups.decoder.copy()
    decoder[[1, 2]] = -decoder[20:32].mean(axis=0) + 0.5 * rng.standard_normal((2, 24))
    found = cluster_features(
        codes, selection, decoder, method="hdbscan", min_cluster_size=3, min_separation=0.0
    )
    assert found.labels[[0, -1]].tolist() == [3, 4]
    assert len(found.separation) == 5
    assert found.kept == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("method", list(CLUSTERINGS))
def test_few_and_duplicate_features_and_one_pair_do_not_break(groups, selection_of, method: str):
    for count in (1, 3):
        selection = selection_of(groups.codes, list(range(20, 20 + count)))
        found = cluster_features(groups.codes, selection, groups.decoder, method=method)
        assert found.labels.shape == (count,)
        assert found.linkage.shape == (count - 1, 4)
        assert set(found.labels) == set(range(len(found.separation)))
    positive, negative = groups.codes.positive.toarray(), groups.codes.negative.toarray()
    positive[:, 20:26] = positive[:, [20]]
    negative[:, 20:26] = negative[:, [20]]
    decoder = groups.decoder.copy()
    decoder[20:26] = decoder[20]
    codes = PairCodes(positive, negative)
    found = cluster_features(
        codes, selection_of(codes, list(range(20, 26))), decoder, method=method
    )
    assert np.isfinite(found.separation).all()
    one = PairCodes(positive[:1] + 1, negative[:1])
    found = cluster_features(one, selection_of(one, list(range(20, 32))), decoder, method=method)
    assert np.isfinite(found.separation).all()


def test_a_dead_or_broken_decoder_row_is_refused_with_its_feature(groups):
    decoder = groups.decoder.copy()
    decoder[25] = 0
    with pytest.raises(DataError, match="decoder row of feature 25 is zero"):
        cluster_features(groups.codes, groups.selection, decoder)
    decoder[25] = np.nan
    with pytest.raises(DataError, match="not all finite"):
        cluster_features(groups.codes, groups.selection, decoder)


def test_the_table_lists_the_fit_with_the_greatest_weight_first(groups):
    clusters = cluster_features(groups.codes, groups.selection, groups.decoder, min_separation=0.7)
    kept = clusters.kept_indices
    deltas = groups.codes.delta @ groups.decoder
    weights = fit_weights(
        deltas, groups.decoder[kept], method="sign_tied", indices=kept, codes=groups.codes
    )
    table = feature_table(groups.selection, clusters, weights, {20: "thanking", 23: "kindness"})
    assert sorted(table["feature"]) == sorted(kept)
    assert table["weight"].abs().is_monotonic_decreasing
    row = table.set_index("feature").loc[23]
    at = int(np.flatnonzero(groups.selection.indices == 23)[0])
    assert row.drop("weight").to_dict() == {
        "score": groups.selection.scores[at],
        "cluster": clusters.labels[at],
        "separation": clusters.separation[clusters.labels[at]],
        "firing_positive": groups.selection.firing_positive[at],
        "firing_negative": groups.selection.firing_negative[at],
        "description": "kindness",
    }
    assert row["weight"] == weights.weights[list(weights.indices).index(23)]
