"""Sampling with common random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LogitsProcessorList


def sampling_processors(
    keys: Sequence[tuple[int, int]], temperature: float, top_p: float, seed: int
) -> LogitsProcessorList:
    """Return logits processors that turn greedy choice into sampling with common random numbers.

    Gumbel-max: argmax(log p + g) with g standard Gumbel noise is a sample of p (Gumbel 1954). The
    noise is a function of the seed, the row's key and the step alone, so rows with one key, such
    as one prompt's sample at several strengths, meet the same noise wherever they stand in a
    batch, on whatever device. Use with `do_sample=False`.

    Args:
        keys: For each row its prompt's and its sample's number.
        temperature: Softmax temperature; 0 gives no processors, that is the likeliest token.
        top_p: Probability of the nucleus that is sampled from.
        seed: Seeds the noise.
    """
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    processors: list[Any] = []
    if temperature > 0.0:
        processors.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1.0:
            processors.append(TopPLogitsWarper(top_p))
        processors.append(_CommonNoise(keys, seed))
    return LogitsProcessorList(processors)


class _CommonNoise:
    """Adds Gumbel noise to the scores, one stream of it for each key."""

    def __init__(self, keys: Sequence[tuple[int, int]], seed: int) -> None:
        unique = list(dict.fromkeys(keys))
        self._row = torch.tensor([unique.index(key) for key in keys])
        self._streams = [torch.Generator().manual_seed(_key_seed(seed, *key)) for key in unique]

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        # Drawn on the CPU so that every device samples the same text; -log of an exponential
        # variable is a Gumbel one.
        width = scores.shape[-1]
        noise = torch.stack(
            [-torch.empty(width).exponential_(generator=s).log() for s in self._streams]
        )
        return scores + noise.to(scores.device)[self._row.to(scores.device)]


def _key_seed(*parts: int) -> int:
    # Neighbouring seeds of one generator are correlated in few bits; a hash spreads them.
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
