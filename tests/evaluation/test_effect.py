"""Vectors are compared at one cost, and the null is counted honestly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saesteer.evaluation import Effect, EffectMeter, VectorResult, against_null, is_monotone
from saesteer.steering.divergence import StrengthMatch


class Linear:
    """Log-likelihoods that move with the strength, each pair at its own rate."""

    rates = np.array([[1.0, 2.0, -0.5], [0.5, 0.5, 0.5]])

    def log_likelihoods(self, vector: Any = None, strength: float = 0.0) -> np.ndarray:
        return -3.0 + self.rates * strength

    def margins(self, vector: Any, strength: float) -> np.ndarray:
        positive, negative = self.log_likelihoods(vector, strength)
        return positive - negative


def meter(kl: Any) -> EffectMeter:
    propensity: Any = Linear()
    return EffectMeter(kl, propensity)


def quadratic(vector: Any, strength: float, unit: str) -> float:
    # The negative side costs more.
    return strength**2 * (1.0 if strength > 0 else 4.0)


def test_the_effect_is_half_of_what_the_margin_moves_at_each_sides_own_strength():
    vector: Any = SimpleNamespace(name="v", method="m")
    found = meter(quadratic).measure(vector, 0.25)
    plus, minus, effect = found.plus.strength, found.minus.strength, found.effect
    assert effect is not None
    assert plus == pytest.approx(0.5, rel=0.02)
    assert minus == pytest.approx(-0.25, rel=0.02)
    moved = np.array([0.5, 1.5, -1.0]) * (plus - minus) / 2
    np.testing.assert_allclose(effect.moved, moved)
    assert effect.effect == pytest.approx(moved.mean())
    assert effect.moved_share == pytest.approx(2 / 3)
    shift = Linear.rates.mean() * (plus + minus) / 2
    assert effect.common_shift == pytest.approx(shift)


def test_the_curve_scales_each_side_by_its_own_strength_and_its_slope_is_numpys():
    vector: Any = SimpleNamespace(name="v", method="m")
    measured = meter(quadratic)
    result = measured.measure(vector, 0.25)
    multiples = [1.5, -1.0, 0.0, 1.0, -0.5]
    curve = measured.curve(vector, result, multiples)
    plus, minus = result.plus.strength, result.minus.strength
    strengths = [m * (plus if m >= 0 else -minus) for m in sorted(multiples)]
    assert [p["multiple"] for p in curve["points"]] == sorted(multiples)
    signed = [abs(m) * (plus if m >= 0 else minus) for m in sorted(multiples)]
    assert [p["strength"] for p in curve["points"]] == pytest.approx(signed)
    margins = np.outer(strengths, [0.5, 1.5, -1.0])
    assert [p["margin"] for p in curve["points"]] == pytest.approx(margins.mean(axis=1))
    slopes = [np.polyfit(sorted(multiples), margins[:, i], 1)[0] for i in range(3)]
    assert curve["slope"] == pytest.approx(np.mean(slopes))
    assert curve["anti_steerable"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("which", ["both", "minus"])
def test_a_target_that_is_not_reached_is_a_result_without_effect(which):
    def flat(vector: Any, strength: float, unit: str) -> float:
        return 1e-6 if which == "both" or strength < 0 else strength**2

    vector: Any = SimpleNamespace(name="v", method="m")
    found = meter(flat).measure(vector, 0.25)
    assert found.effect is None
    assert found.plus.reached is (which == "minus")
    assert not found.minus.reached
    assert found.minus.kl == 1e-6


def test_margins_that_are_not_numbers_have_no_effect():
    class Broken(Linear):
        def log_likelihoods(self, vector: Any = None, strength: float = 0.0) -> np.ndarray:
            return self.rates * (np.nan if strength < 0 else strength)

    propensity: Any = Broken()
    vector: Any = SimpleNamespace(name="v", method="m")
    found = EffectMeter(quadratic, propensity).measure(vector, 0.25)  # type: ignore[arg-type]
    assert found.plus.reached and found.minus.reached
    assert found.effect is None


def _result(effect, reached=True):
    match = StrengthMatch(0.2, 0.3, 0.3, reached, 3)
    made = None if effect is None else Effect(effect, effect, effect, 1.0, 0.0)
    return VectorResult("v", "m", match, match, made)


def test_a_vector_beyond_all_random_directions_has_the_smallest_p():
    null = against_null(_result(0.5), [_result(e) for e in (0.1, -0.4, 0.2, -0.05)])
    assert null is not None
    assert null.beyond_all
    assert null.largest == pytest.approx(0.4)
    assert null.p_value == pytest.approx(1 / 5)


def test_a_random_direction_of_the_other_sign_counts_against_the_vector():
    null = against_null(_result(0.3), [_result(0.1), _result(-0.35)])
    assert null is not None
    assert not null.beyond_all
    assert null.p_value == pytest.approx(2 / 3)


def test_an_effect_that_points_the_wrong_way_is_not_beyond_anything():
    null = against_null(_result(-0.9), [_result(0.1), _result(-0.2)])
    assert null is not None
    assert not null.beyond_all
    assert null.p_value == 1.0


def test_random_directions_that_miss_the_target_are_left_out_and_counted():
    null = against_null(_result(0.3), [_result(0.1), _result(None, reached=False)])
    assert null is not None
    assert (null.n, null.reached) == (2, 1)


def test_no_claim_without_a_null_or_an_effect():
    assert against_null(_result(0.3), []) is None
    assert against_null(_result(None, reached=False), [_result(0.1)]) is None


def test_results_survive_json():
    for result in (_result(0.3), _result(None, reached=False)):
        assert VectorResult.from_dict(result.as_dict()) == result


def test_monotone_means_every_step_rises():
    assert is_monotone([{"margin": m} for m in (-1.0, 0.0, 0.2)])
    assert not is_monotone([{"margin": m} for m in (-1.0, 0.2, 0.2)])
    assert not is_monotone([{"margin": m} for m in (0.3, 0.2)])
