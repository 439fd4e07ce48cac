"""Cluster the chosen features, and keep the clusters that separate the sides of the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from saesteer.methods.features.codes import PairCodes
from saesteer.methods.features.partitions import (
    CLUSTERINGS,
    ClusterCount,
    linkage_matrix,
    silhouette,
)
from saesteer.methods.features.registry import choose
from saesteer.methods.features.rows import checked_rows
from saesteer.methods.features.selection import FeatureSelection
from saesteer.utils.errors import ConfigError, MismatchError


@dataclass(frozen=True, eq=False)
class FeatureClusters:
    """The chosen features in clusters, and which clusters are kept.

    Clusters are numbered from 0 by their strongest feature in the selection; the singletons
    that HDBSCAN calls noise come last.

    Attributes:
        indices: `[feature]` SAE indices, in the selection's order.
        labels: `[feature]` cluster of each feature.
        signs: `[feature]` +1 for a feature of the positive side, -1 for one of the negative.
        noise: `[feature]` True where HDBSCAN found no cluster for the feature.
        linkage: `[feature - 1, 4]` scipy linkage matrix (average), for a dendrogram; its leaves
            are positions in `indices`.
        separation: `[cluster]` AUROC (0 to 1) of the cluster's score between the sides.
        paired_accuracy: `[cluster]` share of pairs whose positive side scores higher, ties one
            half.
        kept: Labels of the clusters that are kept, ascending.
        silhouette: Mean silhouette for each number of clusters that was tried; empty where no
            number could be compared.
        method: Name of the clustering in `CLUSTERINGS`.
        note: A sentence for the user where something was done differently from what was asked,
            else empty.
    """

    indices: Int[np.ndarray, " feature"]
    labels: Int[np.ndarray, " feature"]
    signs: Float[np.ndarray, " feature"]
    noise: Bool[np.ndarray, " feature"]
    linkage: Float[np.ndarray, "merge 4"]
    separation: Float[np.ndarray, " cluster"]
    paired_accuracy: Float[np.ndarray, " cluster"]
    kept: tuple[int, ...]
    silhouette: Mapping[int, float]
    method: str
    note: str = ""

    @property
    def n_clusters(self) -> int:
        """Number of clusters, singletons included."""
        return int(self.separation.size)

    @property
    def kept_mask(self) -> Bool[np.ndarray, " feature"]:
        """True for each feature of a kept cluster."""
        return np.isin(self.labels, self.kept)

    @property
    def kept_indices(self) -> Int[np.ndarray, " kept"]:
        """SAE indices of the features of kept clusters, in the selection's order."""
        return self.indices[self.kept_mask]

    @property
    def kept_signs(self) -> Float[np.ndarray, " kept"]:
        """Signs of `kept_indices`."""
        return self.signs[self.kept_mask]

    def members(self, label: int) -> Int[np.ndarray, " member"]:
        """SAE indices of one cluster's features, strongest first."""
        return self.indices[self.labels == label]


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

    The distance is that of `feature_distance`; it knows nothing of which side a feature
    belongs to. The sign is recorded beside it and used only in the cluster's score.

    Agglomerative and spectral clustering take the number of clusters with the greatest mean
    silhouette (Rousseeuw 1987), the fewer at a tie. HDBSCAN finds its own number, and each
    feature it calls noise becomes a cluster of one.

    A text's score in a cluster is the sum over its features of sign_j * code_j / sd_j, sd_j
    over all sides of `codes`. A cluster is kept when the AUROC of that score reaches
    `min_separation`; when none does, the best is kept and `note` says so.

    Args:
        codes: Activations of both sides, all features.
        selection: The chosen features.
        decoder: `[d_sae, d_model]` the SAE's decoder rows, all features.
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

    Returns:
        The clusters.

    Raises:
        ConfigError: The method is unknown or a number is out of range.
        DataError: A decoder row is zero or not finite.
        MismatchError: Codes, selection and decoder are not of one SAE.
    """
    cluster = choose(CLUSTERINGS, method, field="clustering method")
    count = ClusterCount.checked(
        len(selection), method, n_clusters, min_clusters, max_clusters, min_cluster_size
    )
    if not 0 <= min_separation <= 1:
        raise ConfigError(
            f"min_separation: {min_separation:g} is not an AUROC; give a number from 0 to 1."
        )
    distance = feature_distance(codes, selection.indices, decoder, firing_weight=firing_weight)
    found, curve = cluster(distance, count)
    labels, noise = _numbered(found)
    separation, accuracy = cluster_separation(
        codes, selection.indices, selection.signs, labels, held_out=held_out
    )
    kept, note = _keep(separation, min_separation)
    return FeatureClusters(
        indices=selection.indices,
        labels=labels,
        signs=selection.signs,
        noise=noise,
        linkage=linkage_matrix(distance),
        separation=separation,
        paired_accuracy=accuracy,
        kept=kept,
        silhouette=curve or silhouette(distance, labels),
        method=method,
        note=note,
    )


def feature_distance(
    codes: PairCodes,
    indices: Int[np.ndarray, " feature"],
    decoder: Float[np.ndarray, "d_sae d_model"],
    *,
    firing_weight: float = 0.5,
) -> Float[np.ndarray, "feature feature"]:
    """Distance between features: how they fire together, and how their decoder rows lie.

    w * (1 - correlation) / 2 + (1 - w) * (1 - cosine) / 2, the correlation being Pearson's over
    the activations of all sides. A feature that does not vary correlates with nothing (0).

    Args:
        codes: Activations of both sides, all features.
        indices: The features to compare.
        decoder: `[d_sae, d_model]` decoder rows, all features.
        firing_weight: w, from 0 to 1.

    Returns:
        Symmetric `[feature, feature]` matrix between 0 and 1 with a zero diagonal.

    Raises:
        ConfigError: `firing_weight` is outside 0 to 1.
        DataError: A decoder row is zero or not finite, or an index is unknown.
        MismatchError: The decoder has another number of features than the codes.
    """
    if not 0 <= firing_weight <= 1:
        raise ConfigError(f"firing_weight: {firing_weight:g} is no weight; give 0 to 1.")
    if np.ndim(decoder) != 2 or len(decoder) != codes.d_sae:
        raise MismatchError(
            f"decoder: shape {np.shape(decoder)} does not fit codes of {codes.d_sae} features; "
            "use the decoder of the SAE that made the codes."
        )
    sides = codes.stacked(indices)
    rows = checked_rows(np.asarray(decoder)[indices], indices)
    together = _unit_columns(sides - sides.mean(axis=0))
    geometry = _unit_columns(rows.T)
    correlation, cosine = together.T @ together, geometry.T @ geometry
    mixed = firing_weight * correlation + (1 - firing_weight) * cosine
    distance = np.clip((1 - (mixed + mixed.T) / 2) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    return distance


def cluster_separation(
    codes: PairCodes,
    indices: Int[np.ndarray, " feature"],
    signs: Float[np.ndarray, " feature"],
    labels: Int[np.ndarray, " feature"],
    *,
    held_out: PairCodes | None = None,
) -> tuple[Float[np.ndarray, " cluster"], Float[np.ndarray, " cluster"]]:
    """How well each cluster's score tells positive from negative sides.

    Args:
        codes: Activations that give each feature's standard deviation, and the pairs to score
            unless `held_out` is given.
        indices: SAE indices of the features.
        signs: `[feature]` +1 or -1.
        labels: `[feature]` clusters, numbered from 0.
        held_out: Other pairs to score.

    Returns:
        AUROC and paired accuracy, both `[cluster]` between 0 and 1.

    Raises:
        MismatchError: `held_out` comes from an SAE of another size.
    """
    from sklearn.metrics import roc_auc_score

    deviation = codes.stacked(indices).std(axis=0)
    scale = np.divide(signs, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    scored = codes if held_out is None else held_out
    if scored.d_sae != codes.d_sae:
        raise MismatchError(
            f"held_out: its {scored.d_sae} features are not the {codes.d_sae} of the codes; "
            "encode both with the same SAE."
        )
    parts = scored.stacked(indices) * scale
    separation, accuracy = [], []
    for label in range(int(labels.max()) + 1):
        text = parts[:, labels == label].sum(axis=1)
        separation.append(float(roc_auc_score(scored.labels, text)))
        gap = text[: scored.n_pairs] - text[scored.n_pairs :]
        accuracy.append(float(((np.sign(gap) + 1) / 2).mean()))
    return np.array(separation), np.array(accuracy)


def _unit_columns(matrix: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Scale columns to length 1; a column that is only rounding error becomes exactly zero."""
    lengths = np.linalg.norm(matrix, axis=0)
    real = lengths > 1e-12 * lengths.max(initial=0)
    return np.divide(matrix, lengths, out=np.zeros_like(matrix), where=real)


def _numbered(
    found: Int[np.ndarray, " feature"],
) -> tuple[Int[np.ndarray, " feature"], Bool[np.ndarray, " feature"]]:
    """Number clusters by their first feature, and noise (-1) after them one by one."""
    noise = found < 0
    order: dict[int, int] = {}
    for label in found[~noise]:
        order.setdefault(int(label), len(order))
    labels = np.array([order.get(int(label), -1) for label in found], dtype=np.int64)
    labels[noise] = len(order) + np.arange(int(noise.sum()))
    return labels, noise


def _keep(
    separation: Float[np.ndarray, " cluster"], min_separation: float
) -> tuple[tuple[int, ...], str]:
    kept = tuple(int(label) for label in np.flatnonzero(separation >= min_separation))
    if kept:
        return kept, ""
    best = int(separation.argmax())
    return (best,), (
        f"No cluster separates the sides with an AUROC of {min_separation:.2f} or more, so only "
        f"the best one, cluster {best} with {separation[best]:.2f}, is kept."
    )
