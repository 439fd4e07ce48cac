"""A plain loop over Hugging Face's blocks: what every layer program is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

BlockLoop = Callable[..., torch.Tensor]


@pytest.fixture
def arch() -> str:
    """The architecture of a test that does not ask for several."""
    return "llama"


@pytest.fixture(scope="session")
def block_loop() -> BlockLoop:
    """Return a function: logits of a Hugging Face model that runs these layers one by one.

    `block_loop(hf, ids, order, instead={})`; a step may also be a function of the hidden state.
    """
    return _loop


def _loop(hf: Any, ids: torch.Tensor, order: Sequence[Any]) -> torch.Tensor:
    width = ids.shape[1]
    place = torch.arange(width)[None]
    behind = torch.arange(width)[None, :] - torch.arange(width)[:, None]
    full = _additive(behind <= 0)
    with torch.no_grad():
        if hasattr(hf, "transformer"):
            body = hf.transformer
            hidden = body.wte(ids) + body.wpe(place)
            for step in order:
                hidden = step(hidden) if callable(step) else body.h[step](hidden, None, full)
            return hf.lm_head(body.ln_f(hidden))
        body, types = hf.model, getattr(hf.config, "layer_types", None)
        hidden = body.embed_tokens(ids)
        for step in order:
            if callable(step):
                hidden = step(hidden)
                continue
            mask, kind = full, None if types is None else types[step]
            if kind == "sliding_attention":
                mask = _additive((behind <= 0) & (behind > -hf.config.sliding_window))
            extra = (kind,) if "gemma3" in hf.config.model_type else ()
            rotary = body.rotary_emb(hidden, place, *extra)
            hidden = body.layers[step](
                hidden, attention_mask=mask, position_embeddings=rotary, position_ids=place
            )
        return hf.lm_head(body.norm(hidden))


def _additive(seen: torch.Tensor) -> torch.Tensor:
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


@pytest.fixture(scope="session")
def some_ids() -> Callable[..., torch.Tensor]:
    """Return a function that makes rows of made-up token ids, ordinary tokens alone."""

    def make(rows: int = 2, width: int = 20, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(10, 400, (rows, width), generator=generator)

    return make
