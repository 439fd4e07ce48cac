"""The features of a fit as a table that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.methods.features.clustering import FeatureClusters
from saesteer.methods.features.codes import PairCodes
from saesteer.methods.features.regression import FeatureWeights
from saesteer.methods.features.selection import FeatureSelection, select_features
from saesteer.utils.errors import DataError, MismatchError

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.steering import SteeringVector


def feature_table(
    selection: FeatureSelection,
    clusters: FeatureClusters,
    weights: FeatureWeights,
    descriptions: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """List the fitted features, greatest |weight| first (ties: lower index first).

    Args:
        selection: Scores and firing rates.
        clusters: Clusters and their separation.
        weights: The fit; its features are the table's rows, zero weights included.
        descriptions: Text for each SAE index; features without one get an empty string.

    Returns:
        Columns feature, weight, score, cluster, separation (of the cluster, AUROC),
        firing_positive, firing_negative (shares of texts), description.

    Raises:
        MismatchError: A fitted feature is not among the selected or clustered ones.
    """
    import pandas as pd

    chosen = _positions(selection.indices, weights.indices, "selection")
    clustered = _positions(clusters.indices, weights.indices, "clusters")
    labels = clusters.labels[clustered]
    texts = descriptions or {}
    table = pd.DataFrame(
        {
            "feature": weights.indices,
            "weight": weights.weights,
            "score": selection.scores[chosen],
            "cluster": labels,
            "separation": clusters.separation[labels],
            "firing_positive": selection.firing_positive[chosen],
            "firing_negative": selection.firing_negative[chosen],
            "description": [texts.get(int(index), "") for index in weights.indices],
        }
    )
    order = np.lexsort((weights.indices, -np.abs(weights.weights)))
    return table.iloc[order].reset_index(drop=True)


def vector_features(vector: SteeringVector, codes: PairCodes) -> list[dict[str, Any]]:
    """List the features that any vector is made of, greatest |weight| first.

    Args:
        vector: The vector.
        codes: The training pairs' features.

    Returns:
        For each its feature, weight, score (the criterion of `select_features`; None where no
        feature has one), cluster, firing_positive, firing_negative and description.
    """
    scores: dict[int, float] = {}
    # Where no feature fires differently there is nothing to rank by.
    with suppress(DataError):
        ranked = select_features(codes, n_features=codes.d_sae, min_firing=0.0, max_firing=1.0)
        scores = dict(zip(ranked.indices.tolist(), ranked.scores.tolist(), strict=True))
    return [
        {
            "feature": feature.index,
            "weight": feature.weight,
            "score": scores.get(feature.index),
            "cluster": feature.cluster,
            "firing_positive": float(codes.firing_positive[feature.index]),
            "firing_negative": float(codes.firing_negative[feature.index]),
            "description": feature.description,
        }
        for feature in vector.sae_features
    ]


def _positions(indices: np.ndarray, wanted: np.ndarray, where: str) -> np.ndarray:
    position = {int(index): place for place, index in enumerate(indices)}
    missing = [int(index) for index in wanted if int(index) not in position]
    if missing:
        raise MismatchError(
            f"weights: feature {missing[0]} has a weight but is not in the {where}; pass the "
            "selection and clusters that the weights were fitted on."
        )
    return np.array([position[int(index)] for index in wanted], dtype=np.int64)
