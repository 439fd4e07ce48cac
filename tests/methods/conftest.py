"""What methods are fitted on, made by hand; texts for tiny models, and what these say by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods import FitContext
from saesteer.methods.features import FeatureSelection, PairCodes
from saesteer.models import Site, encode_statements, plain_model
from saesteer.models.reading import Activations, PairActivations
from saesteer.steering import SteeringVector
from tests.by_hand import added

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
        with added(block, u, slice(first, None)):
            logits = plain(torch.tensor([row.ids]), use_cache=False).logits[0]
        return logits[first:-1]

    return run


# Synthetic codes in which the features that matter are known.
N_PAIRS, D_SAE, D_MODEL = 40, 60, 24


@dataclass(frozen=True)
class Planted:
    """Codes with known answers."""

    codes: PairCodes
    positive: np.ndarray
    negative: np.ndarray
    toward_positive: tuple[int, ...] = (3, 17, 29)
    toward_negative: tuple[int, ...] = (8, 41)
    dense: int = 50
    once: int = 51
    silent: int = 52


def sparse_activations(rng: np.random.Generator, rate: np.ndarray, n: int) -> np.ndarray:
    fires = rng.random((n, rate.size)) < rate
    return fires * (0.5 + rng.exponential(1.0, (n, rate.size)))


@pytest.fixture
def planted() -> Planted:
    rng = np.random.default_rng(0)
    rates = np.full((2, D_SAE), 0.2)
    rates[0, [3, 17, 29]], rates[1, [3, 17, 29]] = 0.85, 0.05
    rates[0, [8, 41]], rates[1, [8, 41]] = 0.05, 0.85
    positive = sparse_activations(rng, rates[0], N_PAIRS)
    negative = sparse_activations(rng, rates[1], N_PAIRS)
    # Dense: fires on every text and differs a lot. Once: a single, enormous activation.
    positive[:, 50], negative[:, 50] = 9.0 + rng.random(N_PAIRS), 1.0 + rng.random(N_PAIRS)
    positive[:, 51] = negative[:, 51] = 0
    positive[7, 51] = 200.0
    positive[:, 52] = negative[:, 52] = 0
    return Planted(PairCodes(positive, negative), positive, negative)


@dataclass(frozen=True)
class Groups:
    """Three groups of four features that fire together and point the same way."""

    codes: PairCodes
    decoder: np.ndarray
    selection: FeatureSelection
    truth: np.ndarray


def _selection(codes: PairCodes, indices: list[int]) -> FeatureSelection:
    chosen = np.array(indices)
    return FeatureSelection(
        indices=chosen,
        scores=codes.mean_delta[chosen],
        n_candidates=len(indices),
        firing_positive=codes.firing_positive[chosen],
        firing_negative=codes.firing_negative[chosen],
    )


@pytest.fixture
def selection_of() -> Callable[[PairCodes, list[int]], FeatureSelection]:
    """Choose features by hand."""
    return _selection


@pytest.fixture
def groups() -> Groups:
    """Group 0 fires on positive sides, group 1 on negative ones, group 2 on either."""
    rng = np.random.default_rng(1)
    n = N_PAIRS
    on = np.stack(
        [
            np.concatenate([rng.random(n) < 0.8, rng.random(n) < 0.1]),
            np.concatenate([rng.random(n) < 0.1, rng.random(n) < 0.8]),
            rng.random(2 * n) < 0.4,
        ]
    )
    truth = np.tile([0, 1, 2], 4)
    sides = np.zeros((2 * n, D_SAE))
    sides[:, 20:32] = on[truth].T * (1 + 0.3 * rng.random((2 * n, 12)))
    centres = rng.standard_normal((3, D_MODEL))
    decoder = rng.standard_normal((D_SAE, D_MODEL))
    decoder[20:32] = centres[truth] + 0.3 * rng.standard_normal((12, D_MODEL))
    codes = PairCodes(sides[:n], sides[n:])
    return Groups(codes, decoder, _selection(codes, list(range(20, 32))), truth)
