"""Margins are those of a plain loop, vectors are compared at one cost, the null is honest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saesteer.data import pairs_from
from saesteer.evaluation import (
    Effect,
    EffectMeter,
    PropensityMeter,
    VectorResult,
    against_null,
    effect_of,
    evaluate,
    is_monotone,
)
from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import plan_run
from saesteer.steering.divergence import StrengthMatch
from saesteer.utils.errors import DataError
from tests.by_hand import answer_log_probs

PAIRS = pairs_from(
    [
        ("i like the little house", "i hate the hill"),
        ("the water is good and so is the bread and the wine", "go away"),
        ("help me", "i will not help anyone who stands on the hill"),
    ]
)
REQUEST = "tell me about the house on the hill by the water please"


def _loop(model, statement, request=REQUEST):
    return np.mean(answer_log_probs(model, request, statement))


def test_margins_equal_a_loop_over_statements(tiny_llama):
    margins = PropensityMeter(tiny_llama, PAIRS, request=REQUEST).margins()
    wanted = [_loop(tiny_llama, p.positive) - _loop(tiny_llama, p.negative) for p in PAIRS]
    np.testing.assert_allclose(margins, wanted, atol=1e-4)
    # Pairs with their own prompt use it.
    asked = "is the water good"
    own = pairs_from([{"positive": "yes", "negative": "no", "prompt": asked}])
    margins = PropensityMeter(tiny_llama, own, request=REQUEST).margins()
    wanted = _loop(tiny_llama, "yes", asked) - _loop(tiny_llama, "no", asked)
    assert margins[0] == pytest.approx(wanted, abs=1e-4)


def test_the_interval_is_that_of_a_percentile_bootstrap():
    rng = np.random.default_rng(3)
    travel = rng.normal(0.4, 0.2, 200)
    plus = np.stack([travel, -travel])
    effect = effect_of(np.zeros_like(plus), plus, -plus)
    # As `saesteer compare` draws it, to the last digit.
    assert (effect.low, effect.high) == item_interval(2 * travel)[1:]
    draws = 2 * travel[rng.integers(0, 200, (4000, 200))].mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    assert effect.low == pytest.approx(low, abs=0.01)
    assert effect.high == pytest.approx(high, abs=0.01)
    one = np.array([[1.0], [0.0]])
    single = effect_of(np.zeros((2, 1)), one, -one)
    assert single.effect == single.low == single.high == 1.0


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
    np.testing.assert_allclose((np.array(effect.up) - effect.down) / 2, moved)
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
    # Monotone means that every step rises.
    for rises, steps in ((True, (-1.0, 0.0, 0.2)), (False, (-1.0, 0.2, 0.2)), (False, (0.3, 0.2))):
        assert is_monotone([{"margin": m} for m in steps]) is rises


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
    assert VectorResult.from_dict(found.as_dict()) == found


def test_margins_that_are_not_numbers_have_no_effect(monkeypatch):
    vector: Any = SimpleNamespace(name="v", method="m")
    monkeypatch.setattr(Linear, "rates", Linear.rates * np.nan)
    found = meter(quadratic).measure(vector, 0.25)
    assert found.plus.reached and found.effect is None


def _result(effect, reached=True):
    match = StrengthMatch(0.2, 0.3, 0.3, reached, 3)
    made = None if effect is None else Effect(effect, effect, effect, 1.0, 0.0)
    return VectorResult("v", "m", match, match, made)


@pytest.mark.parametrize(
    ("effect", "null", "beyond", "p"),
    [
        (0.5, (0.1, -0.4, 0.2, -0.05), True, 1 / 5),
        # A random direction of the other sign counts against the vector.
        (0.3, (0.1, -0.35), False, 2 / 3),
        # The wrong way is not beyond anything.
        (-0.9, (0.1, -0.2), False, 1.0),
        # One that misses the target is left out and counted.
        (0.3, (0.1, None), True, 1 / 2),
    ],
)
def test_a_vector_is_held_against_random_directions_of_either_sign(effect, null, beyond, p):
    found = against_null(_result(effect), [_result(e, e is not None) for e in null])
    assert found is not None
    known = [abs(e) for e in null if e is not None]
    assert (found.n, found.reached, found.beyond_all) == (len(null), len(known), beyond)
    assert found.largest == pytest.approx(max(known))
    assert found.p_value == pytest.approx(p)
    assert against_null(_result(effect), []) is None
    assert against_null(_result(None, reached=False), [_result(0.1)]) is None


@pytest.fixture(scope="module")
def run(tiny_settings, roomy_folder):
    settings = tiny_settings("llama")
    settings["model"]["name"] = str(roomy_folder)
    config = RunConfig(**settings)
    return config, run_experiment(config)


def test_it_gives_the_numbers_of_the_command(run, roomy_model):
    config, results = run
    table = evaluate(
        roomy_model,
        plan_run(config).held_out,
        results.vector,
        kl_target=config.evaluation.kl_target,
        neutral=config.evaluation.neutral,
    )
    assert list(table.columns) == ["method", "strength", "kl", "effect", "low", "high"]
    (row,) = table.to_dict("records")
    wanted = results.metrics["vector"]
    assert row["method"] == wanted["method"]
    assert row["strength"] == pytest.approx(wanted["plus"]["strength"], rel=1e-6)
    assert row["kl"] == pytest.approx(wanted["plus"]["kl"], rel=1e-6)
    for name in ("effect", "low", "high"):
        assert row[name] == pytest.approx(wanted["effect"][name], rel=1e-5)


def test_vectors_keep_their_order_and_a_target_out_of_reach_has_no_effect(run, roomy_model):
    config, results = run
    vector, held_out = results.vector, plan_run(config).held_out
    both: Any = evaluate(roomy_model, held_out, [vector, -vector], kl_target=0.05)
    assert both["effect"][0] == pytest.approx(-both["effect"][1], rel=0.1)
    far = evaluate(roomy_model, held_out, [vector], kl_target=1e3)
    assert np.isnan(far["effect"]).all() and far["effect"].dtype == float
    with pytest.raises(DataError, match="KL needs at least"):
        evaluate(roomy_model, held_out, [vector], neutral_answers=1)
