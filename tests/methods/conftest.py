"""What methods are fitted on, made by hand; texts for tiny models, and what these say by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods import FitContext
from saesteer.methods.features import PairCodes
from saesteer.models import Site, encode_statements, plain_model
from saesteer.models.reading import Activations, PairActivations
from saesteer.steering import SteeringVector

SITE = Site(1)
REQUEST = "tell me about the house on the hill"


@pytest.fixture
def site() -> Site:
    return SITE


@pytest.fixture
def given_of() -> Callable[..., FitContext]:
    """Return a function from activations and an SAE to what methods are fitted on, no model."""

    def make(activations: PairActivations, sae: Any = None, seed: int = 0, **parts: Any) -> Any:
        nothing: Any = None
        given = FitContext(nothing, nothing, sae=sae, site=activations.site, name="mine", seed=seed)
        given.model_name, given.model_fingerprint = "tiny", "f" * 64
        given.activations = activations
        given.read = lambda part, site: activations
        for part, value in parts.items():
            setattr(given, part, value)
        return given

    return make


@pytest.fixture
def given_codes(given_of) -> Callable[..., FitContext]:
    """Return a function from both sides' codes and an SAE to what methods are fitted on."""

    def make(positive: np.ndarray, negative: np.ndarray, sae: Any, **parts: Any) -> Any:
        n = len(positive)
        side = Activations(torch.ones(n, sae.d_in), torch.arange(n + 1), SITE)
        codes = PairCodes(positive, negative)
        return given_of(PairActivations(side, side), sae, codes=codes, **parts)

    return make


@pytest.fixture
def given_sides(given_of) -> Callable[..., FitContext]:
    """Return a function from one vector for each side to what methods are fitted on."""

    def make(positive: np.ndarray, negative: np.ndarray, **parts: Any) -> Any:
        offsets = torch.arange(len(positive) + 1)
        sides = [Activations(torch.tensor(x).float(), offsets, SITE) for x in (positive, negative)]
        return given_of(PairActivations(sides[0], sides[1]), **parts)

    return make


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
