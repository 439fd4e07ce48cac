"""A steering vector from features that somebody chose, without pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from saesteer.saes.labels import PLACE_KEY
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.errors import SaeError, SteeringError

if TYPE_CHECKING:
    from saesteer.saes.adapter import Sae


def vector_of_features(
    sae: Sae,
    weights: Mapping[int, float],
    *,
    model: str,
    name: str = "chosen features",
    max_activation: Mapping[int, float] | None = None,
    residual_norm: float | None = None,
    descriptions: Mapping[int, str] | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
) -> SteeringVector:
    """Return sum_j w_j d_j over chosen features, d_j being decoder rows.

    Args:
        sae: The SAE.
        weights: Each feature's weight; below 0 steers away from it.
        model: The model's name.
        name: What to call the vector.
        max_activation: Each feature's largest activation on text; where all are known the vector
            carries the unit "max_act".
        residual_norm: Mean L2 norm of the activations at the site, if measured.
        descriptions: What features stand for.
        provenance: What else to keep.

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
    if not kept:
        raise SteeringError("no feature with a weight was chosen; choose at least one.")
    indices = sorted(kept, key=lambda index: (-abs(kept[index]), index))
    rows = sae.decoder[indices].numpy().astype(np.float64)
    sizes = np.array([kept[index] for index in indices])
    length = None
    if max_activation is not None and all(max_activation.get(index) for index in indices):
        peaks = np.sign(sizes) * np.array([max_activation[index] for index in indices])
        length = float(np.linalg.norm(peaks @ rows)) or None
    texts = descriptions or {}
    return SteeringVector.from_raw(
        sizes @ rows,
        site=sae.write_site,
        model=model,
        model_fingerprint=sae.model_fingerprint,
        residual_norm=residual_norm,
        max_act=length,
        features=tuple(SteeredFeature(i, kept[i], None, texts.get(i)) for i in indices),
        sae=sae.name,
        sae_fingerprint=sae.fingerprint,
        method="chosen_features",
        name=name,
        read_positions="none: features chosen by hand",
        provenance={PLACE_KEY: sae.neuronpedia_id, **(provenance or {})},
    )
