"""What Neuronpedia is asked to steer with: its ranges, and strengths in its units.

Neuronpedia adds `strength_multiplier * strength * d / |d|` for each feature, d being its decoder
row, at every position (apps/inference of its repository: rows are folded to unit norm on loading).
A vector `norm * direction = sum_j w_j d_j` added with L2 length r is therefore, with a multiplier
of 1, strength_j = w_j |d_j| r / norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesteer.saes.neuronpedia.links import SourceId
from saesteer.utils.errors import SteeringError

MOST_TOKENS = 256
MOST_STRENGTH = 300.0
MOST_MULTIPLIER = 10.0


@dataclass(frozen=True)
class SteerSettings:
    """How Neuronpedia generates.

    Attributes:
        n_tokens: The most tokens, up to 256.
        temperature: 0 (the likeliest token) to 2.
        frequency_penalty: -2 to 2.
        seed: Seeds the sampling.
        method: "SIMPLE_ADDITIVE" or "ORTHOGONAL_DECOMP".
        special_tokens: Whether a chat's special tokens are steered as well.
    """

    n_tokens: int = 48
    temperature: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 16
    method: str = "SIMPLE_ADDITIVE"
    special_tokens: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "n_tokens": (self.n_tokens, 1, MOST_TOKENS),
            "temperature": (self.temperature, 0, 2),
            "frequency_penalty": (self.frequency_penalty, -2, 2),
            "seed": (self.seed, -100_000_000, 100_000_000),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise SteeringError(
                    f"{name} is {value} and Neuronpedia takes {low} to {high}; choose within."
                )
        if self.method not in ("SIMPLE_ADDITIVE", "ORTHOGONAL_DECOMP"):
            raise SteeringError(
                f"steering method {self.method!r} is unknown to Neuronpedia; use SIMPLE_ADDITIVE "
                "or ORTHOGONAL_DECOMP."
            )


def feature_strengths(
    features: Sequence[tuple[int, float]],
    row_norms: Mapping[int, float],
    *,
    norm: float,
    raw: float,
) -> dict[int, float]:
    """Return each feature's strength in Neuronpedia's units: L2 length along its unit decoder row.

    Args:
        features: Index and weight of the vector's features.
        row_norms: L2 norm of each feature's decoder row.
        norm: L2 norm of the natural vector, sum_j w_j d_j.
        raw: Signed L2 length that is to be added.
    """
    return {
        index: weight * row_norms[index] * raw / norm for index, weight in features if weight != 0.0
    }


def steer_payload(
    source: SourceId, strengths: Mapping[int, float], settings: SteerSettings
) -> dict[str, Any]:
    """Return what is posted, but for the prompt.

    Raises:
        SteeringError: There is no feature, or a strength is beyond Neuronpedia's range.
    """
    largest = max(map(abs, strengths.values()), default=0.0)
    if not strengths or not math.isfinite(largest):
        raise SteeringError(
            "Neuronpedia steers with features and finite strengths; give a vector made of "
            "features, or upload the vector first."
        )
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
            {
                "modelId": source.model,
                "layer": source.source,
                "index": int(index),
                "strength": float(value) / multiplier,
            }
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
