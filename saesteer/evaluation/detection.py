"""Concept detection after AxBench: does the largest reading over a text's tokens tell concepts?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from saesteer.models.reading import Activations
from saesteer.saes.adapter import Sae
from saesteer.steering import SteeringVector
from saesteer.utils.errors import DataError

POSITIVE, NEGATIVE, HARD = "positive", "negative", "hard negative"


def largest_readings(
    vector: SteeringVector,
    at_site: Activations,
    codes: Callable[[int], Float[np.ndarray, "token d_sae"]],
) -> Float[np.ndarray, " text"]:
    """Return each text's largest reading over its tokens.

    A dense vector reads the projection on its direction, a vector of SAE features the sum of their
    activations times their weights; `codes` gives a text's features.
    """
    features = vector.sae_features
    if not features:
        raw = vector.raw.double().cpu()
        direction = raw / raw.norm()
        tokens = (at_site.text(i).double() @ direction for i in range(at_site.n_texts))
        return np.array([float(own.max()) for own in tokens])
    indices, weights = zip(*((one.index, one.weight) for one in features), strict=True)
    picked = (codes(i)[:, list(indices)] for i in range(at_site.n_texts))
    return np.array([float((own @ np.array(weights)).max()) for own in picked])


def codes_of(sae: Sae, read: Activations) -> Callable[[int], Float[np.ndarray, "token d_sae"]]:
    """Return a function that gives a text's features, encoded when asked."""
    return lambda index: sae.encode(read.text(index)).double().cpu().numpy()


def detection_auroc(
    readings: Float[np.ndarray, " text"], categories: Sequence[str], against: str = NEGATIVE
) -> float | None:
    """Return the AUROC of the readings for texts with a concept against those of a category.

    None where there is no text of the category.

    Raises:
        DataError: A reading is not a finite number.
    """
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(readings).all():
        raise DataError("a text's reading is not a finite number; read in float32.")
    kinds = np.array(categories)
    counted = np.isin(kinds, (POSITIVE, against))
    if not (kinds == against).any():
        return None
    return float(roc_auc_score(kinds[counted] == POSITIVE, readings[counted]))
