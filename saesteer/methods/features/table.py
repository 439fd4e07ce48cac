"""The features of a fit as a table that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.methods.features.cluster import FeatureClusters
from saesteer.methods.features.codes import PairCodes
from saesteer.methods.features.select import FeatureSelection, select_features, strongest_first
from saesteer.methods.features.weights import FeatureWeights
from saesteer.utils.errors import DataError

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

    Rows are the features of `weights`, zero weights included; columns feature, weight, score,
    cluster, separation (of the cluster, AUROC), firing_positive, firing_negative (shares of texts)
    and description, empty where there is none.
    """
    import pandas as pd

    place = {int(index): at for at, index in enumerate(selection.indices)}
    # Clusters keep the selection's order.
    chosen = np.array([place[int(index)] for index in weights.indices], dtype=np.int64)
    labels = clusters.labels[chosen]
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
    order = strongest_first(weights.weights, weights.indices)
    return table.iloc[order].reset_index(drop=True)


def vector_features(vector: SteeringVector, codes: PairCodes) -> list[dict[str, Any]]:
    """List the features that any vector is made of, greatest |weight| first.

    For each its feature, weight, score (the criterion of `select_features`; None where no feature
    has one), cluster, firing_positive, firing_negative on the training pairs and description.
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
