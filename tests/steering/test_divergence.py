"""The cost of steering is measured right and met by bisection."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from saesteer.models import encode_statements, plain_model
from saesteer.steering import DivergenceMeter, match_strength
from saesteer.utils.errors import DataError
from tests.by_hand import added


class Curve:
    """Stands for a meter: KL as a known function of the strength."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, vector: Any, strength: float, unit: str = "norm") -> float:
        self.calls += 1
        return self.function(abs(strength))


def met(function: Any, **how: Any) -> Any:
    meter: Any = Curve(function)
    vector: Any = None
    match = match_strength(meter, vector, 0.3, **how)
    assert meter.calls == match.evaluations
    return match


@pytest.mark.parametrize(
    "curve",
    [
        lambda a: 3.0 * a**2,
        lambda a: 0.002 * a**2,
        lambda a: 900.0 * a**2,
        lambda a: a if a < 0.1 else a**3,
        lambda a: 5 * (1 - math.exp(-(a**2))),
    ],
)
def test_the_target_is_met_whatever_the_curve(curve):
    for sign in (1, -1):
        match = met(curve, sign=sign, largest=100.0)
        assert match.reached and match.evaluations <= 16
        assert math.copysign(1, match.strength) == sign
        assert match.kl == curve(abs(match.strength)) == pytest.approx(0.3, rel=0.031)


def test_a_target_that_cannot_be_met_is_said_and_not_invented():
    match = met(lambda a: 0.01, largest=4.0)
    assert not match.reached and match.kl == 0.01
    for value in (math.nan, math.inf, 0.0):
        assert not met(lambda a, v=value: v).reached
    # Few evaluations suffice where KL is quadratic.
    assert met(lambda a: 4.2 * a**2, start=0.2).evaluations <= 3


def rows_of(model, system=None, n=20):
    answers = [f"the {'little ' * (i % 8)}house number {i} stands on the hill" for i in range(n)]
    questions = ["where is it?" if i % 2 else "tell me about the house" for i in range(n)]
    return encode_statements(model.tokenizer, answers, questions, system=system)


def kl_by_hand(model, rows, others, change=0.0):
    """The mean KL over tokens of some rows, changed from the last prompt token on, to others."""

    def log_probs(row, change):
        first = row.kept.index(True) - 1
        block: Any = plain_model(model).model.layers[1]
        with torch.no_grad(), added(block, change, slice(first, None)):
            logits = plain_model(model)(torch.tensor([row.ids])).logits[0, first:-1]
        return logits.double().log_softmax(-1)

    pairs = [(log_probs(a, change), log_probs(b, 0.0)) for a, b in zip(rows, others, strict=True)]
    total = sum(float((a.exp() * (a - b)).sum()) for a, b in pairs)
    return total / sum(len(a) for a, _ in pairs)


def test_divergence_equals_a_loop_over_single_rows(llama, make_vector):
    rows, vector = rows_of(llama), make_vector()
    meter = DivergenceMeter(llama, rows)
    by_hand = kl_by_hand(llama, rows, rows, 0.2 * 10.0 * vector.direction)
    assert meter(vector, 0.2) == pytest.approx(by_hand, rel=1e-3)
    assert meter(vector, 0.0) == 0.0
    # And what a system prompt costs, of the same answers.
    prompted = rows_of(llama, "You are kind, and you always listen.")
    found = meter.of_prompted(prompted)
    assert found == pytest.approx(kl_by_hand(llama, prompted, rows), rel=1e-3)
    assert found > 0.001
    with pytest.raises(DataError, match="at least 200"):
        DivergenceMeter(llama, rows_of(llama, n=2))
