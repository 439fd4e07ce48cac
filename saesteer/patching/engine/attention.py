"""Attention of a window of columns against keys and values that are already known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NAME = "saesteer_window"
Pattern = Float[Tensor, "row head query key"]


class EnoughError(Exception):
    """Ends a block's pass once its keys and values are known."""


@dataclass
class KVWindow:
    """What attention needs to know beside the columns that run."""

    # Of the columns before the window, positions applied; None where there is none.
    keys: Float[Tensor, "row head pos d_head"] | None = None
    values: Float[Tensor, "row head pos d_head"] | None = None
    # Changes the pattern of the whole batch.
    edit: Callable[[Pattern], Pattern] | None = None
    # What to put into `kept`: the window's own keys and values, and the pattern behind them.
    keep: bool = False
    keep_pattern: bool = False
    # Whether to end the pass when the keys and values are kept.
    stop: bool = False
    kept: list[Tensor] = field(default_factory=list)


def window_attention(
    module: nn.Module,
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row kv_head query d_head"],
    value: Float[Tensor, "row kv_head query d_head"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    saesteer_window: KVWindow | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row query head d_head"], Pattern | None]:
    """Attend as transformers' attention functions do, to a window's own past besides.

    Query, key and value have their positions applied; there is no dropout, as nothing is trained.
    """
    window = saesteer_window or KVWindow()
    if window.keep:
        window.kept += [key, value]
    if window.stop:
        raise EnoughError
    if window.keys is not None and window.values is not None:
        key = torch.cat([window.keys, key], dim=2)
        value = torch.cat([window.values, value], dim=2)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if window.edit is None and not window.keep_pattern and softcap is None:
        heads = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=True
        )
        return heads.transpose(1, 2), None
    pattern = _pattern(query, key, attention_mask, scale, softcap)
    if window.edit is not None:
        pattern = window.edit(pattern)
    if window.keep_pattern:
        window.kept.append(pattern)
    heads = pattern @ _for_every_head(value, query.shape[1])
    return heads.transpose(1, 2), pattern


@contextmanager
def windows_allowed(model: nn.Module) -> Iterator[None]:
    """Let a Hugging Face model's attention take windows, for as long as the context lasts."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, window_attention)
    # The mask as numbers to add, never left out: windows are cut from it.
    AttentionMaskInterface.register(NAME, eager_mask)
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _pattern(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Pattern:
    scores = query @ _for_every_head(key, query.shape[1]).transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)


def _for_every_head(shared: Tensor, heads: int) -> Tensor:
    return shared.repeat_interleave(heads // shared.shape[1], dim=1)
