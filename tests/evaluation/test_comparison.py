"""Vectors are compared at one cost, and the null is counted honestly."""

from __future__ import annotations

import pytest

from saesteer.evaluation import (
    Effect,
    StrengthMatch,
    VectorResult,
    against_null,
    is_monotone,
)


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


def test_random_directions_that_miss_the_budget_are_left_out_and_counted():
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
