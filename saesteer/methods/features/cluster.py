"""Cluster the chosen features, and keep the clusters that separate the sides of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator

from saesteer.methods.features.codes import PairCodes, directions
from saesteer.methods.features.select import FeatureSelection, known_name
from saesteer.utils.errors import ConfigError, MismatchError
from saesteer.utils.settings import Settings, parse_config

# Silhouettes this close are a tie, so that rounding does not choose the number of clusters.
TIE = 1e-9

Distances = Float[np.ndarray, "feature feature"]
Labels = Int[np.ndarray, " feature"]
Silhouettes = dict[int, float]
# From a number of clusters to labels; HDBSCAN's from its smallest cluster, with -1 for noise.
Cut = Callable[[int], Labels]


@dataclass(frozen=True, eq=False)
class FeatureClusters:
    """The chosen features in clusters, and which clusters are kept.

    Clusters are numbered from 0 by their strongest feature in the selection; the singletons
    that HDBSCAN calls noise come last.
    """

    indices: Int[np.ndarray, " feature"]  # in the SAE, in the selection's order
    labels: Labels
    signs: Float[np.ndarray, " feature"]  # +1 for a feature of the positive side, else -1
    linkage: Float[np.ndarray, "merge 4"]  # scipy's, by average distance, for a dendrogram
    separation: Float[np.ndarray, " cluster"]  # AUROC of each cluster's score between the sides
    kept: tuple[int, ...]  # labels, ascending
    silhouette: Mapping[int, float]  # mean, for each number of clusters that was tried
    note: str = ""  # a sentence for the user where none separates as asked

    @property
    def kept_indices(self) -> Int[np.ndarray, " kept"]:
        """SAE indices of the features of kept clusters, in the selection's order."""
        return self.indices[np.isin(self.labels, self.kept)]

    @property
    def kept_signs(self) -> Float[np.ndarray, " kept"]:
        """Signs of `kept_indices`."""
        return self.signs[np.isin(self.labels, self.kept)]

    @property
    def label_of(self) -> dict[int, int]:
        """Each feature's cluster, by its index in the SAE."""
        return dict(zip(self.indices.tolist(), self.labels.tolist(), strict=True))


class ClusteringSettings(Settings):
    """How candidates are clustered and clusters kept; see `saesteer.cluster_features`."""

    method: str = "agglomerative"
    firing_weight: float = Field(default=0.5, ge=0, le=1)
    n_clusters: int | None = Field(default=None, ge=1)
    min_clusters: int = Field(default=2, ge=2)
    max_clusters: int | None = Field(default=None, ge=2)
    min_cluster_size: int = Field(default=2, ge=2)
    min_separation: float = Field(default=0.5, ge=0, le=1)

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, CLUSTERINGS)

    @model_validator(mode="after")
    def _counts_fit(self) -> ClusteringSettings:
        if self.n_clusters is not None and self.method == "hdbscan":
            raise ValueError(
                "n_clusters: hdbscan finds its own number of clusters; leave n_clusters out"
            )
        if self.max_clusters is not None and self.max_clusters < self.min_clusters:
            raise ValueError(
                f"max_clusters ({self.max_clusters}) is below min_clusters ({self.min_clusters}); "
                "raise it"
            )
        return self


def cluster_features(
    codes: PairCodes,
    selection: FeatureSelection,
    decoder: Float[np.ndarray, "d_sae d_model"],
    *,
    method: str = "agglomerative",
    firing_weight: float = 0.5,
    n_clusters: int | None = None,
    min_clusters: int = 2,
    max_clusters: int | None = None,
    min_cluster_size: int = 2,
    min_separation: float = 0.6,
    held_out: PairCodes | None = None,
) -> FeatureClusters:
    """Cluster the chosen features and keep the clusters that separate the sides.

    Features are near when they fire together and their decoder rows point the same way (see
    `feature_distance`); which side one belongs to is used only in the cluster's score.

    Agglomerative and spectral clustering take the number of clusters with the greatest mean
    silhouette (Rousseeuw 1987), the fewer at a tie. HDBSCAN finds its own number, and each
    feature it calls noise becomes a cluster of one.

    A text's score in a cluster is the sum over its features of sign_j * code_j / sd_j, sd_j
    over all sides of `codes`. A cluster is kept when the AUROC of that score reaches
    `min_separation`; when none does, the best is kept and `note` says so.

    Args:
        codes: Activations of both sides, all features.
        selection: The chosen features.
        decoder: The SAE's decoder rows, all features.
        method: A name in `CLUSTERINGS`: "agglomerative" (average linkage), "hdbscan",
            "spectral".
        firing_weight: Weight (0 to 1) of firing together against decoder geometry.
        n_clusters: A fixed number of clusters; not for "hdbscan".
        min_clusters: Least number to try, at least 2.
        max_clusters: Greatest number to try; half the features when left out. Never more than
            one less than the features, where the silhouette ends.
        min_cluster_size: HDBSCAN's smallest cluster, at least 2.
        min_separation: Least AUROC (0 to 1) for a cluster to be kept.
        held_out: Other pairs to measure separation on. Without it separation is measured on the
            pairs that chose the features, and is optimistic.

    Raises:
        ConfigError: The method is unknown or a number is out of range.
        DataError: A decoder row is zero or not finite.
        MismatchError: Codes, selection and decoder are not of one SAE.

    Example:
        >>> chosen = ss.select_features(codes, max_firing=1.0)
        >>> clusters = ss.cluster_features(codes, chosen, sae.decoder.numpy())
        >>> len(clusters.kept_indices) <= len(chosen)
        True
    """
    settings = parse_config(
        {
            "method": method,
            "firing_weight": firing_weight,
            "n_clusters": n_clusters,
            "min_clusters": min_clusters,
            "max_clusters": max_clusters,
            "min_cluster_size": min_cluster_size,
            "min_separation": min_separation,
        },
        kind=ClusteringSettings,
        place="cluster_features",
    )
    distance = feature_distance(codes, selection.indices, decoder, firing_weight=firing_weight)
    cut, counts = CLUSTERINGS[method](distance), _counts(len(selection), settings)
    if method == "hdbscan":
        found, curve = cut(min_cluster_size), {}
    else:
        found, curve = _best(distance, counts, cut)
    labels = _numbered(found)
    separation = _separation(codes, selection, labels, codes if held_out is None else held_out)
    kept, note = tuple(np.flatnonzero(separation >= min_separation).tolist()), ""
    if not kept:
        best = int(separation.argmax())
        kept = (best,)
        note = (
            f"No cluster separates the sides with an AUROC of {min_separation:.2f} or more, so "
            f"only the best one, cluster {best} with {separation[best]:.2f}, is kept."
        )
    return FeatureClusters(
        indices=selection.indices,
        labels=labels,
        signs=selection.signs,
        linkage=_linkage(distance),
        separation=separation,
        kept=kept,
        silhouette=curve or _silhouette(distance, labels),
        note=note,
    )


def _counts(n: int, settings: ClusteringSettings) -> Sequence[int]:
    """Return the numbers to try: at most one less than the features, where silhouettes end."""
    fixed, least = settings.n_clusters, settings.min_clusters
    if fixed is not None:
        if fixed > n:
            raise ConfigError(
                f"n_clusters: {n} features cannot make {fixed} clusters; give 1 to {n}."
            )
        return (fixed,)
    if n < 3:
        return (n,)
    most = max(least, n // 2) if settings.max_clusters is None else settings.max_clusters
    greatest = min(most, n - 1)
    return range(min(least, greatest), greatest + 1)


def feature_distance(
    codes: PairCodes,
    indices: Int[np.ndarray, " feature"],
    decoder: Float[np.ndarray, "d_sae d_model"],
    *,
    firing_weight: float = 0.5,
) -> Distances:
    """Distance between features: how they fire together, and how their decoder rows lie.

    w * (1 - correlation) / 2 + (1 - w) * (1 - cosine) / 2, w being `firing_weight` and the
    correlation Pearson's over the activations of all sides. A feature that does not vary
    correlates with nothing (0). Distances lie between 0 and 1.

    Raises:
        DataError: A decoder row is zero or not finite, or an index is unknown.
        MismatchError: The decoder has another number of features than the codes.
    """
    sides = codes.stacked(indices)
    if len(decoder) != codes.d_sae:
        raise MismatchError(
            f"decoder: its {len(decoder)} rows are not the {codes.d_sae} features of the codes; "
            "use the decoder of the SAE that made the codes."
        )
    rows = directions(np.asarray(decoder)[indices], indices)
    together = _unit_columns(sides - sides.mean(axis=0))
    geometry = _unit_columns(rows.T)
    correlation, cosine = together.T @ together, geometry.T @ geometry
    mixed = firing_weight * correlation + (1 - firing_weight) * cosine
    distance = np.clip((1 - (mixed + mixed.T) / 2) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    return distance


def _unit_columns(matrix: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Scale columns to length 1; a column that is only rounding error becomes exactly zero."""
    lengths = np.linalg.norm(matrix, axis=0)
    real = lengths > 1e-12 * lengths.max(initial=0)
    return np.divide(matrix, lengths, out=np.zeros_like(matrix), where=real)


def _separation(
    codes: PairCodes, selection: FeatureSelection, labels: Labels, scored: PairCodes
) -> Float[np.ndarray, " cluster"]:
    """Return the AUROC of each cluster's score between the sides of `scored`."""
    from sklearn.metrics import roc_auc_score

    if scored.d_sae != codes.d_sae:
        raise MismatchError(
            f"held_out: its {scored.d_sae} features are not the {codes.d_sae} of the codes; "
            "encode both with the same SAE."
        )
    deviation = codes.stacked(selection.indices).std(axis=0)
    scale = np.divide(selection.signs, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    parts = scored.stacked(selection.indices) * scale
    texts = (parts[:, labels == label].sum(axis=1) for label in range(int(labels.max()) + 1))
    return np.array([float(roc_auc_score(scored.labels, text)) for text in texts])


def _agglomerative(distance: Distances) -> Cut:
    """Average linkage."""
    from scipy.cluster.hierarchy import cut_tree

    n = len(distance)
    # Column j is what j merges leave, n - j clusters.
    cuts = cut_tree(_linkage(distance)) if n > 1 else np.zeros((1, 1), dtype=np.int64)
    return lambda k: cuts[:, n - k]


def _spectral(distance: Distances) -> Cut:
    """Spectral clustering on the similarity 1 - 2 * distance.

    That is the mix of correlation and cosine itself; below zero it counts as none.
    """
    from sklearn.cluster import SpectralClustering

    # A floor keeps the graph connected, which the spectral embedding needs.
    affinity = np.maximum(1 - 2 * distance, 1e-6)
    how: Any = {"affinity": "precomputed", "assign_labels": "cluster_qr", "random_state": 0}
    return lambda k: np.asarray(SpectralClustering(n_clusters=k, **how).fit(affinity).labels_)


def _hdbscan(distance: Distances) -> Cut:
    """HDBSCAN (Campello, Moulavi & Sander 2013), cut by the smallest cluster; -1 for noise."""
    from sklearn.cluster import HDBSCAN

    # scikit-learn would work in place, and its own type for `copy` is wrong.
    how: Any = {"metric": "precomputed", "copy": True}

    def cut(smallest: int) -> Labels:
        if len(distance) < smallest:
            return np.full(len(distance), -1)
        return np.asarray(HDBSCAN(min_cluster_size=smallest, **how).fit(distance).labels_)

    return cut


CLUSTERINGS: Mapping[str, Callable[[Distances], Cut]] = MappingProxyType(
    {"agglomerative": _agglomerative, "hdbscan": _hdbscan, "spectral": _spectral}
)


def _best(distance: Distances, counts: Sequence[int], cut: Cut) -> tuple[Labels, Silhouettes]:
    """Return the clusters of the greatest silhouette, and the silhouette of each number."""
    n = len(distance)
    best, best_value, curve = np.zeros(n, dtype=np.int64), -np.inf, {}
    for k in counts:
        labels = cut(k) if 1 < k < n else np.arange(n) * (k == n)
        value = _silhouette(distance, labels)
        curve |= value
        reached = next(iter(value.values()), -np.inf)
        if reached > best_value + TIE or best_value == -np.inf:
            best, best_value = labels, reached
    return best, curve


def _silhouette(distance: Distances, labels: Labels) -> Silhouettes:
    """Return the mean silhouette by number of clusters; none where it is not defined."""
    from sklearn.metrics import silhouette_score

    k = np.unique(labels).size
    if not 2 <= k <= len(labels) - 1:
        return {}
    return {k: float(silhouette_score(distance, labels, metric="precomputed"))}


def _linkage(distance: Distances) -> Float[np.ndarray, "merge 4"]:
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if len(distance) < 2:
        return np.zeros((0, 4))
    return linkage(squareform(distance, checks=False), method="average")


def _numbered(found: Labels) -> Labels:
    """Number clusters by their first feature, and noise (-1) after them one by one."""
    order = list(dict.fromkeys(found[found >= 0].tolist()))
    noise = iter(range(len(order), len(order) + len(found)))
    return np.array([order.index(one) if one >= 0 else next(noise) for one in found.tolist()])
