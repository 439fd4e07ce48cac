"""Random directions, and random features of those that differ, are left to chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.methods import FitContext, RandomDirection, RandomFeatures
from saesteer.saes import load_sae

WIDTH, PAIRS = 60, 12
SILENT = np.arange(2 * WIDTH) >= 90


@pytest.fixture
def given(mirror_sae, given_codes) -> FitContext:
    rng = np.random.default_rng(0)
    positive, negative = rng.exponential(size=(2, PAIRS, 2 * WIDTH)) * ~SILENT
    return given_codes(positive, negative, load_sae(mirror_sae(d_in=WIDTH)))


def weights(given: FitContext, draw: int = 0, n: int = 32) -> dict[int, float]:
    return {f.index: f.weight for f in RandomFeatures(draw, n).fit_in(given).vector_.sae_features}


def test_each_feature_weighs_its_mean_absolute_difference(given):
    sizes = np.abs(given.codes.positive.toarray() - given.codes.negative.toarray()).mean(axis=0)
    for draw in range(5):
        drawn = weights(given, draw)
        assert len(drawn) == 32
        assert all(abs(weight) == pytest.approx(sizes[j]) for j, weight in drawn.items())
        assert not any(SILENT[index] for index in drawn)
    assert len(weights(given, n=1000)) == int((~SILENT).sum())


def test_features_and_signs_are_left_to_chance(given):
    draws = [weights(given, draw, 30) for draw in range(200)]
    counts = np.bincount([index for drawn in draws for index in drawn], minlength=2 * WIDTH)
    # 30 of 90 features, 200 times: 67 each, standard deviation 6.7.
    assert counts[~SILENT].min() > 35 and counts[~SILENT].max() < 100
    signs = np.array([np.sign(weight) for drawn in draws for weight in drawn.values()])
    assert abs(signs.mean()) < 0.05


def test_random_directions_are_as_long_as_the_delta_and_nearly_orthogonal(given_sides):
    sides = np.random.default_rng(0).normal(size=(2, 2, 2048))
    given = given_sides(*sides, seed=5)
    vectors = [RandomDirection(draw).fit_in(given).vector_ for draw in range(6)]
    length = float(given.deltas.mean(dim=0).norm())
    assert all(v.norm == pytest.approx(length, rel=1e-6) for v in vectors)
    directions = torch.stack([v.direction for v in vectors])
    # About 0.022 from 2048 dimensions at random; seven times that.
    assert float((directions @ directions.T - torch.eye(6)).abs().max()) < 0.15
    assert float((directions @ given.deltas.mean(dim=0)).abs().max()) < 0.15 * length
    assert len({v.name for v in vectors}) == 6


def test_draws_and_seeds_repeat_and_differ(given, given_sides):
    sides = given_sides(np.ones((3, 8)), np.zeros((3, 8)))

    def direction(draw: int, seed: int) -> torch.Tensor:
        sides.seed = seed
        return RandomDirection(draw).fit_in(sides).vector_.direction

    assert torch.equal(direction(3, 7), direction(3, 7))
    assert not torch.allclose(direction(3, 7), direction(4, 7))
    assert not torch.allclose(direction(3, 7), direction(3, 8))
    assert torch.isfinite(direction(0, 2**32 - 1)).all()
    first = weights(given, 3)
    assert weights(given, 3) == first != weights(given, 4)
    given.seed = 1
    assert weights(given, 3) != first
