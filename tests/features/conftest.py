"""Synthetic codes in which the features that matter are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from saesteer.methods.features import FeatureSelection, PairCodes

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
