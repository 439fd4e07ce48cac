"""Ways to split features into clusters by a distance matrix, all with one signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from saesteer.utils.errors import ConfigError

# Silhouettes this close are a tie, so that rounding does not choose the number of clusters.
TIE = 1e-9


@dataclass(frozen=True)
class ClusterCount:
    """How many clusters to try, already checked against the number of features."""

    candidates: tuple[int, ...]
    min_cluster_size: int

    @classmethod
    def checked(
        cls,
        n_features: int,
        method: str,
        n_clusters: int | None,
        min_clusters: int,
        max_clusters: int | None,
        min_cluster_size: int,
    ) -> ClusterCount:
        """Check the user's numbers and list the cluster numbers to try.

        Args:
            n_features: How many features there are to cluster.
            method: The clustering's name; "hdbscan" takes no `n_clusters`.
            n_clusters: A fixed number, or None.
            min_clusters: Least number to try.
            max_clusters: Greatest number to try, or None for half the features.
            min_cluster_size: HDBSCAN's smallest cluster.

        Returns:
            The numbers to try, ascending: at most `n_features - 1`, where silhouettes end, but
            for a fixed number or fewer than three features.

        Raises:
            ConfigError: A number is out of range.
        """
        if n_clusters is not None and method == "hdbscan":
            raise ConfigError(
                "n_clusters: hdbscan finds its own number of clusters; leave n_clusters out or "
                "use method='agglomerative'."
            )
        if n_clusters is not None and not 1 <= n_clusters <= n_features:
            raise ConfigError(
                f"n_clusters: {n_features} features cannot make {n_clusters} clusters; give 1 to "
                f"{n_features}."
            )
        if min_clusters < 2 or (max_clusters is not None and max_clusters < min_clusters):
            raise ConfigError(
                f"min_clusters, max_clusters: {min_clusters} and {max_clusters} are no range; "
                "give 2 <= min_clusters <= max_clusters (for one cluster set n_clusters=1)."
            )
        if min_cluster_size < 2:
            raise ConfigError(
                f"min_cluster_size: {min_cluster_size} is too small; give 2 or more (features "
                "that fit no cluster become clusters of one)."
            )
        if n_clusters is not None:
            return cls((n_clusters,), min_cluster_size)
        if n_features < 3:
            return cls((n_features,), min_cluster_size)
        greatest = max(min_clusters, n_features // 2) if max_clusters is None else max_clusters
        greatest = min(greatest, n_features - 1)
        return cls(tuple(range(min(min_clusters, greatest), greatest + 1)), min_cluster_size)


Clustering = Callable[
    [Float[np.ndarray, "feature feature"], ClusterCount],
    tuple[Int[np.ndarray, " feature"], dict[int, float]],
]
"""Distances and cluster numbers to labels (-1: no cluster) and the silhouette of each number."""


def agglomerative(
    distance: Float[np.ndarray, "feature feature"], count: ClusterCount
) -> tuple[Int[np.ndarray, " feature"], dict[int, float]]:
    """Average linkage, cut where the mean silhouette is greatest.

    Args:
        distance: Symmetric matrix with a zero diagonal.
        count: The numbers of clusters to try.

    Returns:
        Labels, and the silhouette of each number tried.
    """
    from sklearn.cluster import AgglomerativeClustering

    def cut(k: int) -> Int[np.ndarray, " feature"]:
        model = AgglomerativeClustering(n_clusters=k, metric="precomputed", linkage="average")
        return np.asarray(model.fit(distance).labels_)

    return _best(distance, count, cut)


def spectral(
    distance: Float[np.ndarray, "feature feature"], count: ClusterCount
) -> tuple[Int[np.ndarray, " feature"], dict[int, float]]:
    """Spectral clustering on the similarity 1 - 2 * distance, cut at the greatest silhouette.

    The similarity is the mix of correlation and cosine itself; below zero it counts as none.

    Args:
        distance: Symmetric matrix between 0 and 1 with a zero diagonal.
        count: The numbers of clusters to try.

    Returns:
        Labels, and the silhouette of each number tried.
    """
    from sklearn.cluster import SpectralClustering

    # A floor keeps the graph connected, which the spectral embedding needs.
    affinity = np.maximum(1 - 2 * distance, 1e-6)

    def cut(k: int) -> Int[np.ndarray, " feature"]:
        model = SpectralClustering(
            n_clusters=k, affinity="precomputed", assign_labels="cluster_qr", random_state=0
        )
        return np.asarray(model.fit(affinity).labels_)

    return _best(distance, count, cut)


def hdbscan(
    distance: Float[np.ndarray, "feature feature"], count: ClusterCount
) -> tuple[Int[np.ndarray, " feature"], dict[int, float]]:
    """HDBSCAN (Campello, Moulavi & Sander 2013) on the distances.

    Args:
        distance: Symmetric matrix with a zero diagonal.
        count: Holds the smallest cluster's size.

    Returns:
        Labels, -1 for noise, and no silhouettes: the number of clusters was not tried out.
    """
    from sklearn.cluster import HDBSCAN

    if len(distance) < count.min_cluster_size:
        return np.full(len(distance), -1), {}
    # scikit-learn would work in place, and its own type for `copy` is wrong.
    model = HDBSCAN(
        min_cluster_size=count.min_cluster_size,
        metric="precomputed",
        copy=True,  # pyright: ignore[reportArgumentType]
    )
    return np.asarray(model.fit(distance).labels_), {}


CLUSTERINGS: Mapping[str, Clustering] = MappingProxyType(
    {"agglomerative": agglomerative, "hdbscan": hdbscan, "spectral": spectral}
)


def silhouette(
    distance: Float[np.ndarray, "feature feature"], labels: Int[np.ndarray, " feature"]
) -> dict[int, float]:
    """Mean silhouette of a clustering.

    Args:
        distance: Symmetric matrix with a zero diagonal.
        labels: `[feature]` clusters.

    Returns:
        {number of clusters: mean silhouette}; empty for one cluster or for as many as features,
        where it is not defined.
    """
    from sklearn.metrics import silhouette_score

    k = np.unique(labels).size
    if not 2 <= k <= len(labels) - 1:
        return {}
    return {k: float(silhouette_score(distance, labels, metric="precomputed"))}


def linkage_matrix(
    distance: Float[np.ndarray, "feature feature"],
) -> Float[np.ndarray, "merge 4"]:
    """Average linkage of the features, for a dendrogram.

    Args:
        distance: Symmetric matrix with a zero diagonal.

    Returns:
        scipy linkage matrix `[feature - 1, 4]`; empty for one feature.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if len(distance) < 2:
        return np.zeros((0, 4))
    return linkage(squareform(distance, checks=False), method="average")


def _best(
    distance: Float[np.ndarray, "feature feature"],
    count: ClusterCount,
    cut: Callable[[int], Int[np.ndarray, " feature"]],
) -> tuple[Int[np.ndarray, " feature"], dict[int, float]]:
    n = len(distance)
    best, best_value = np.zeros(n, dtype=np.int64), -np.inf
    curve: dict[int, float] = {}
    for k in count.candidates:
        if k == 1 or k == n:
            labels = np.zeros(n, dtype=np.int64) if k == 1 else np.arange(n)
        else:
            labels = cut(k)
        value = silhouette(distance, labels)
        curve.update(value)
        reached = next(iter(value.values()), -np.inf)
        if reached > best_value + TIE or best_value == -np.inf:
            best, best_value = labels, reached
    return best, curve
