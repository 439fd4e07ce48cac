"""Target atoms pass both thresholds, amplitude and frequency, with one sign."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.methods import TargetAtoms
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, SteeringError

WIDTH, PAIRS = 20, 50


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=WIDTH))


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Sides that differ in amplitude and in frequency, each on its own; the last ten never fire."""
    rng = np.random.default_rng(0)
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


@pytest.mark.parametrize("quantiles", [(0.65, 0.65), (0.2, 0.9), (0.0, 0.0)])
def test_it_keeps_what_a_loop_by_hand_keeps(quantiles, sae, given_codes):
    positive, negative = drawn()
    wanted = by_hand(positive, negative, *quantiles)
    vector = TargetAtoms(*quantiles).fit_in(given_codes(positive, negative, sae)).vector_
    assert {f.index: pytest.approx(f.weight) for f in vector.sae_features} == wanted


def test_where_none_passes_both_the_vector_says_that_it_is_zero(sae, given_codes):
    positive, negative = np.zeros((2, PAIRS, 2 * WIDTH))
    # It fires more often on the positive side, and more strongly on the negative one.
    positive[:, 0], negative[:10, 0] = 1.0, 90.0
    with pytest.raises(SteeringError, match=r"is zero"):
        TargetAtoms(0.0, 0.0).fit_in(given_codes(positive, negative, sae))


def test_quantiles_out_of_range_are_sentences():
    for value in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"frequency_quantile: .* is not from 0 to below 1"):
            TargetAtoms(frequency_quantile=value)
