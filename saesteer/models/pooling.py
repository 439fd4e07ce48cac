"""From a text's tokens to one vector per text."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.reading import Activations
from saesteer.utils.errors import ConfigError

Pooling = Literal["mean", "last"]


def pool(activations: Activations, how: Pooling = "mean") -> Float[Tensor, "text d_model"]:
    """Return one float32 vector per text: the mean over its read tokens, or its last one."""
    if how not in get_args(Pooling):
        raise ConfigError(f"pooling {how!r} is unknown; use 'mean' or 'last'.")
    values = activations.values.to(torch.float32)
    ends = activations.offsets[1:]
    if how == "last":
        return values[ends - 1]
    counts = ends - activations.offsets[:-1]
    texts = torch.repeat_interleave(torch.arange(activations.n_texts), counts)
    sums = torch.zeros(activations.n_texts, values.shape[1]).index_add_(0, texts, values)
    return sums / counts[:, None]


def mean_norm(activations: Activations) -> float:
    """Return the mean L2 norm over all read tokens: the unit "norm" of strengths."""
    return float(activations.values.to(torch.float32).norm(dim=1).mean())
