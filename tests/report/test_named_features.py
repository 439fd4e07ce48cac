"""Features stand by weight, contexts are cut at their token, trees keep their clusters."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.cluster.hierarchy import linkage

from saesteer.report.named_features import Dendrogram, cluster_order, dendrogram_data, feature_data


def _features(**fields: Any) -> dict[str, Any]:
    rows = [
        {"feature": 7, "weight": 0.2, "cluster": 1, "description": "seven"},
        {"feature": 8, "weight": -0.9, "cluster": 0, "description": "eight"},
        {"feature": 9, "weight": 0.0, "cluster": 1, "description": "nine", **fields},
    ]
    return {"features": {"warm": rows}}


def test_strongest_feature_comes_first_whatever_its_sign():
    rows = feature_data(_features(), "warm")
    assert [row.feature for row in rows] == [8, 7, 9]
    assert cluster_order(rows) == [0, 1]
    assert feature_data(_features(), "cold") == []


def test_context_is_cut_at_the_token_it_fires_on():
    contexts = [
        {"text": "so so good", "token": "so", "activation": 2.0},
        {"text": "no", "token": "x"},
    ]
    found = feature_data(_features(contexts=contexts), "warm")[2].contexts
    # Of two places the one further back is meant.
    assert found[0] == ("so ", "so", " good", 2.0)
    assert found[1] == ("no", "", "", None)


@pytest.mark.parametrize("url", ["javascript:alert(1)", "file:///etc/passwd", 3, None, "data:,x"])
def test_only_web_addresses_become_links(url):
    assert feature_data(_features(url=url), "warm")[2].url is None
    assert feature_data(_features(url="https://x.org/9"), "warm")[2].url == "https://x.org/9"


def test_tree_joins_what_scipy_joined_and_knows_pure_clusters():
    metrics = _features()
    joined = linkage([[0.0], [5.0], [1.0]])
    metrics["linkage"] = {
        "warm": {"linkage": joined.tolist(), "labels": [7, 8, 9], "clusters": [1, 0, 1]}
    }
    tree = dendrogram_data(metrics, "warm")
    assert isinstance(tree, Dendrogram)
    assert {leaf.feature: leaf.cluster for leaf in tree.leaves} == {7: 1, 8: 0, 9: 1}
    by_height = {
        max(x for x, _ in link): own for link, own in zip(tree.links, tree.clusters, strict=True)
    }
    assert by_height == {1.0: 1, 4.0: None}
    # The join at 1.0 spans its own two leaves.
    low = next(link for link in tree.links if max(x for x, _ in link) == 1.0)
    heights = sorted({y for _, y in low})
    assert {tree.leaves[int(y)].feature for y in heights} == {7, 9}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "No cluster tree"),
        ({"linkage": [], "labels": []}, "No cluster tree"),
        ({"linkage": [[0, 1, 0.5, 2]], "labels": [7, 8, 9]}, "does not fit"),
        ({"linkage": [[0, 1, None, 2]], "labels": [7, 8]}, "does not fit"),
        ({"linkage": [[0, 9, 0.5, 2]], "labels": [7, 8]}, "does not fit"),
        ({"linkage": [["a"]], "labels": ["b", "c"]}, "does not fit"),
        ({"linkage": [[0, 1, 0.5, 2]], "labels": [*range(500)]}, "too large"),
    ],
)
def test_tree_that_cannot_be_drawn_says_why(record, words):
    found = dendrogram_data({"linkage": {"warm": record}}, "warm")
    assert isinstance(found, str) and words in found
