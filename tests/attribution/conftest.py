"""Texts for the tiny models, and what they say computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from saesteer.models import Site, encode_statements, plain_model
from saesteer.steering import SteeringVector

SITE = Site(1)
REQUEST = "tell me about the house on the hill"


@pytest.fixture
def site() -> Site:
    return SITE


@pytest.fixture
def rows_of() -> Callable[..., Any]:
    """Return a function from texts to rows behind one request."""
    return lambda model, texts: encode_statements(model.tokenizer, texts, REQUEST)


@pytest.fixture
def neutral(rows_of) -> Callable[..., Any]:
    """Return a function that makes rows of more than 200 tokens, of different lengths."""
    text = "the little house number {} stands on the hill{}"
    texts = [text.format(i, " by the water" * (i % 3)) for i in range(9)]
    return lambda model: rows_of(model, texts)


@pytest.fixture
def vector_of() -> Callable[..., SteeringVector]:
    """Return a function from a raw vector to a SteeringVector at the site."""

    def make(raw: Any, site: Site = SITE) -> SteeringVector:
        raw = torch.as_tensor(raw, dtype=torch.float32)
        return SteeringVector.from_raw(raw, site=site, model="tiny", residual_norm=2.0)

    return make


@pytest.fixture
def logits_by_hand() -> Callable[..., Any]:
    """Return a function from a row and a vector u to the logits before each of its kept tokens.

    One row at a time on the plain model, u added from the last prompt token on at block 1's output.
    """

    def run(model: Any, row: Any, u: Any) -> Any:
        first = row.kept.index(True) - 1
        plain: Any = plain_model(model)
        block = plain.transformer.h[1] if hasattr(plain, "transformer") else plain.model.layers[1]
        with _adding(block, u, first):
            logits = plain(torch.tensor([row.ids]), use_cache=False).logits[0]
        return logits[first:-1]

    return run


@contextmanager
def _adding(block: Any, u: Any, first: int):
    def add(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        changed = torch.cat([hidden[:, :first], hidden[:, first:] + u], dim=1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
