"""Random features: drawn from those that differ, each at its own size, signs by chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.methods import MethodInputs, RandomFeatures
from saesteer.methods.features import PairCodes
from saesteer.models import Site
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError

WIDTH, PAIRS = 60, 12
SILENT = np.arange(2 * WIDTH) >= 90


@pytest.fixture(scope="module")
def inputs(mirror_sae) -> MethodInputs:
    rng = np.random.default_rng(0)
    positive, negative = rng.exponential(size=(2, PAIRS, 2 * WIDTH)) * ~SILENT
    side = Activations(torch.ones(PAIRS, WIDTH), torch.arange(PAIRS + 1), Site(1))
    codes = PairCodes.from_dense(positive, negative)
    sae = load_sae(mirror_sae(d_in=WIDTH))
    return MethodInputs(PairActivations(side, side), "tiny", "f", codes=codes, sae=sae)


def weights(inputs: MethodInputs, draw: int = 0, n: int = 32) -> dict[int, float]:
    return {f.index: f.weight for f in RandomFeatures(draw, n)(inputs).sae_features}


def test_each_feature_weighs_its_mean_absolute_difference(inputs):
    sizes = np.abs(inputs.codes.positive.toarray() - inputs.codes.negative.toarray()).mean(axis=0)
    for draw in range(5):
        drawn = weights(inputs, draw)
        assert len(drawn) == 32
        assert all(abs(weight) == pytest.approx(sizes[j]) for j, weight in drawn.items())
        assert not any(SILENT[index] for index in drawn)


def test_features_and_signs_are_left_to_chance(inputs):
    draws = [weights(inputs, draw, 30) for draw in range(200)]
    counts = np.bincount([index for drawn in draws for index in drawn], minlength=2 * WIDTH)
    # 30 of 90 features, 200 times: 67 each, standard deviation 6.7.
    assert counts[~SILENT].min() > 35 and counts[~SILENT].max() < 100
    signs = np.array([np.sign(weight) for drawn in draws for weight in drawn.values()])
    assert abs(signs.mean()) < 0.05


def test_draws_and_seeds_repeat_and_differ(inputs):
    assert weights(inputs, 3) == weights(inputs, 3)
    assert weights(inputs, 3) != weights(inputs, 4)
    assert weights(replace(inputs, seed=1), 3) != weights(inputs, 3)
    assert weights(replace(inputs, seed=2**32 - 1))
    assert RandomFeatures(7)(inputs).name == "random features 7"


def test_random_vectors_have_nothing_to_do_with_the_mean_delta(inputs):
    mean = inputs.codes.mean_delta @ inputs.sae.decoder.numpy()
    mean /= np.linalg.norm(mean)
    cosines = [float(RandomFeatures(d)(inputs).direction.numpy() @ mean) for d in range(100)]
    # 1 / sqrt(60) = 0.13 for directions at random.
    assert abs(np.mean(cosines)) < 0.05


def test_all_that_differ_are_taken_where_there_are_fewer_than_asked_for(inputs):
    assert len(weights(inputs, n=1000)) == int((~SILENT).sum())
    with pytest.raises(ConfigError, match=r"n_features: 0 features"):
        RandomFeatures(n_features=0)
