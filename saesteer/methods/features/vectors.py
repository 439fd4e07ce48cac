"""Steering vectors of weighted SAE features: their sum, and the features as a table to read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from pydantic import JsonValue

from saesteer.methods.features.cluster import FeatureClusters
from saesteer.methods.features.codes import PairCodes
from saesteer.methods.features.select import FeatureSelection, select_features, strongest_first
from saesteer.methods.features.weights import FeatureWeights
from saesteer.saes.labels import PLACE_KEY
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.errors import DataError, SaeError

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.saes.adapter import Sae


def vector_of_features(
    sae: Sae,
    weights: Mapping[int, float],
    *,
    model: str,
    name: str = "chosen features",
    max_activation: Mapping[int, float] | Float[np.ndarray, " d_sae"] | None = None,
    descriptions: Mapping[int, str] | None = None,
    clusters: Mapping[int, int] | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
    **rest: Any,
) -> SteeringVector:
    """Return sum_j w_j d_j over features, d_j being decoder rows.

    Args:
        sae: The SAE.
        weights: Each feature's weight; below 0 steers away from it, and of weight 0 is left out.
        model: The model's name.
        name: What to call the vector.
        max_activation: Each feature's largest activation on text, which gives the vector the unit
            "max_act".
        descriptions: What features stand for.
        clusters: Each feature's cluster.
        provenance: What else to keep.
        **rest: Other fields of the vector, such as `residual_norm`.

    Raises:
        SaeError: The SAE has no such feature.
        SteeringError: No weight differs from 0, or the rows cancel out.
    """
    kept = {int(index): float(weight) for index, weight in weights.items() if weight}
    for index in kept:
        if not 0 <= index < sae.d_sae:
            raise SaeError(
                f"feature {index} is not in SAE {sae.name}, which has 0 to {sae.d_sae - 1}; choose "
                "one of them."
            )
    indices = sorted(kept, key=lambda index: (-abs(kept[index]), index))
    rows = sae.decoder[indices].numpy().astype(np.float64)
    sizes = np.array([kept[index] for index in indices])
    length = None
    if max_activation is not None and indices:
        peaks = np.sign(sizes) * np.array([max_activation[index] for index in indices])
        length = float(np.linalg.norm(peaks @ rows)) or None
    texts, grouped = descriptions or {}, clusters or {}
    return SteeringVector.from_raw(
        sizes @ rows,
        model=model,
        name=name,
        max_act=length,
        features=tuple(SteeredFeature(i, kept[i], grouped.get(i), texts.get(i)) for i in indices),
        sae=sae.name,
        sae_fingerprint=sae.fingerprint,
        provenance={PLACE_KEY: sae.neuronpedia_id, **(provenance or {})},
        **{
            "site": sae.write_site,
            "model_fingerprint": sae.model_fingerprint,
            "method": "chosen_features",
            "read_positions": "none: features chosen by hand",
            **rest,
        },
    )


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
