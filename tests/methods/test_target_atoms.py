"""Target atoms pass both thresholds, amplitude and frequency, with one sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.methods import MethodInputs, TargetAtoms
from saesteer.methods.features import PairCodes
from saesteer.models import Site
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, SteeringError

WIDTH, PAIRS = 20, 50


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=WIDTH))


def inputs_of(positive: np.ndarray, negative: np.ndarray, sae) -> MethodInputs:
    n = len(positive)
    side = Activations(torch.ones(n, WIDTH), torch.arange(n + 1), Site(1))
    codes = PairCodes.from_dense(positive, negative)
    return MethodInputs(PairActivations(side, side), "tiny", "f", codes=codes, sae=sae)


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sides that differ in amplitude and in frequency, each on its own; the last ten never fire."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        fires = rng.random((PAIRS, 2 * WIDTH)) < rng.random(2 * WIDTH)
        values = fires * rng.exponential(rng.uniform(0.2, 3, 2 * WIDTH), (PAIRS, 2 * WIDTH))
        values[:, -10:] = 0
        made.append(values)
    return made[0], made[1]


def by_hand(positive, negative, amplitude_quantile, frequency_quantile) -> dict[int, float]:
    amplitude = (positive - negative).mean(axis=0)
    frequency = (positive > 0).mean(axis=0) - (negative > 0).mean(axis=0)
    fires = [j for j in range(2 * WIDTH) if positive[:, j].any() or negative[:, j].any()]
    agree = [j for j in fires if amplitude[j] * frequency[j] > 0]
    least_a = np.quantile([abs(amplitude[j]) for j in fires], amplitude_quantile)
    least_f = np.quantile([abs(frequency[j]) for j in agree], frequency_quantile)
    return {
        j: amplitude[j]
        for j in agree
        if abs(amplitude[j]) >= least_a and abs(frequency[j]) >= least_f
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quantiles", [(0.65, 0.65), (0.2, 0.9), (0.0, 0.0), (0.9, 0.1)])
def test_it_keeps_what_a_loop_by_hand_keeps(seed, quantiles, sae):
    positive, negative = drawn(seed)
    wanted = by_hand(positive, negative, *quantiles)
    given = inputs_of(positive, negative, sae)
    if not wanted:
        with pytest.raises(SteeringError, match=r"is zero"):
            TargetAtoms(*quantiles)(given)
        return
    vector = TargetAtoms(*quantiles)(given)
    assert {f.index: pytest.approx(f.weight) for f in vector.sae_features} == wanted
    raw = sum(weight * sae.decoder[index].numpy() for index, weight in wanted.items())
    np.testing.assert_allclose(vector.raw.numpy(), raw, rtol=1e-4, atol=1e-5)


def test_features_that_never_fire_do_not_lower_the_thresholds(sae):
    positive, negative = drawn()
    chosen = {f.index for f in TargetAtoms()(inputs_of(positive, negative, sae)).sae_features}
    fires = int((positive.any(axis=0) | negative.any(axis=0)).sum())
    assert 0 < len(chosen) <= np.ceil(0.35 * fires)


def test_a_feature_that_fires_more_often_but_more_weakly_is_no_atom(sae):
    positive, negative = drawn()
    positive[:, 0], negative[:, 0] = 1.0, np.where(np.arange(PAIRS) < 10, 90.0, 0.0)
    vector = TargetAtoms(0.0, 0.0)(inputs_of(positive, negative, sae))
    assert 0 not in {feature.index for feature in vector.sae_features}


def test_quantiles_out_of_range_are_sentences():
    for value in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"frequency_quantile: .* is not from 0 to below 1"):
            TargetAtoms(frequency_quantile=value)
        with pytest.raises(ConfigError, match=r"amplitude_quantile"):
            TargetAtoms(value)
