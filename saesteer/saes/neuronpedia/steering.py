"""What Neuronpedia is asked to steer with: its ranges, and strengths in its units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from saesteer.saes.neuronpedia.links import SourceId
from saesteer.utils.errors import SteeringError
from saesteer.utils.settings import Settings

MOST_STRENGTH = 300.0
MOST_MULTIPLIER = 10.0
MOST_UPLOADED_STRENGTH = 100.0


class SteerSettings(Settings):
    """How Neuronpedia generates, within its ranges."""

    n_tokens: int = Field(default=48, ge=1, le=256)
    temperature: float = Field(default=0.0, ge=0, le=2)  # 0: the likeliest token.
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    seed: int = Field(default=16, ge=-100_000_000, le=100_000_000)
    method: Literal["SIMPLE_ADDITIVE", "ORTHOGONAL_DECOMP"] = "SIMPLE_ADDITIVE"
    special_tokens: bool = False  # Whether a chat's special tokens are steered as well.


def feature_strengths(
    weights: Mapping[int, float], row_norms: Mapping[int, float], *, norm: float, raw: float
) -> dict[int, float]:
    """Return each feature's strength in Neuronpedia's units: L2 length along its unit decoder row.

    Neuronpedia adds `strength_multiplier * strength * d / |d|` for each feature, d being its
    decoder row, at every position (apps/inference of its repository: rows are folded to unit norm
    on loading). A vector `norm * direction = sum_j w_j d_j` added with L2 length `raw` is
    therefore, with a multiplier of 1, strength_j = w_j |d_j| raw / norm.

    Args:
        weights: The weights of the vector's features.
        row_norms: L2 norm of each feature's decoder row.
        norm: L2 norm of the natural vector, sum_j w_j d_j.
        raw: Signed L2 length that is to be added.
    """
    return {i: w * row_norms[i] * raw / norm for i, w in weights.items() if w != 0.0}


def steer_payload(
    source: SourceId, strengths: Mapping[int, float], settings: SteerSettings
) -> dict[str, Any]:
    """Return what is posted, but for the prompt.

    Raises:
        SteeringError: There is no feature, or a strength is beyond Neuronpedia's range.
    """
    if not strengths or not all(map(math.isfinite, strengths.values())):
        raise SteeringError(
            "Neuronpedia steers with features and finite strengths; give a vector made of "
            "features, or upload the vector first."
        )
    largest = max(map(abs, strengths.values()))
    # One feature takes at most 300; the multiplier lifts all of them alike.
    multiplier = max(1.0, float(math.ceil(largest / MOST_STRENGTH)))
    if multiplier > MOST_MULTIPLIER:
        raise SteeringError(
            f"the largest feature's strength is {largest:.0f} and Neuronpedia takes at most "
            f"{MOST_STRENGTH * MOST_MULTIPLIER:.0f}; lower the strength."
        )
    return {
        "modelId": source.model,
        "features": [
            {**source.place, "index": int(index), "strength": float(value) / multiplier}
            for index, value in strengths.items()
        ],
        "temperature": settings.temperature,
        "n_tokens": settings.n_tokens,
        "freq_penalty": settings.frequency_penalty,
        "seed": settings.seed,
        "strength_multiplier": multiplier,
        "steer_method": settings.method,
        "stream": False,
    }
