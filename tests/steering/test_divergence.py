"""The cost of steering is measured right and met by bisection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from saesteer.models import Site, encode_statements, plain_model
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.steering import DivergenceMeter, SteeringVector, match_strength
from saesteer.utils.errors import DataError
from tests.by_hand import added


@dataclass
class _Curve:
    """Stands for a meter: KL as a known function of the strength."""

    function: Any
    calls: int = 0

    def __call__(self, vector: Any, strength: float, unit: str = "norm") -> float:
        self.calls += 1
        return self.function(abs(strength))


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
        meter = _Curve(curve)
        match = match_strength(meter, None, 0.3, sign=sign, largest=100.0)  # type: ignore[arg-type]
        assert match.reached
        assert math.copysign(1, match.strength) == sign
        assert curve(abs(match.strength)) == pytest.approx(0.3, rel=0.031)
        assert match.kl == curve(abs(match.strength))
        assert meter.calls == match.evaluations <= 16


def test_a_target_that_cannot_be_met_is_said_and_not_invented():
    match = match_strength(_Curve(lambda a: 0.01), None, 0.3, largest=4.0)  # type: ignore[arg-type]
    assert not match.reached
    assert match.kl == 0.01
    for value in (math.nan, math.inf, 0.0):
        assert not match_strength(_Curve(lambda a, v=value: v), None, 0.3).reached  # type: ignore

    # Few evaluations suffice where KL is quadratic.
    meter = _Curve(lambda a: 4.2 * a**2)
    match_strength(meter, None, 0.3, start=0.2)  # type: ignore[arg-type]
    assert meter.calls <= 3


def _rows(model, n=12):
    answers = [f"the little house number {i} stands on the hill by the water" for i in range(n)]
    questions = ["where is it?" if i % 2 else "tell me about the house" for i in range(n)]
    return encode_statements(model.tokenizer, answers, questions)


def _vector(model, layer=1, seed=0, length=1.0):
    raw = torch.randn(int(model.cfg.d_model), generator=torch.Generator().manual_seed(seed))
    return SteeringVector.from_raw(
        raw * length,
        site=Site(layer),
        model="tiny",
        model_fingerprint=model.saesteer.fingerprint,
        residual_norm=2.0,
    )


def test_divergence_equals_a_loop_over_single_rows(tiny_llama):
    model = tiny_llama
    rows = _rows(model)
    vector = _vector(model)
    measured = DivergenceMeter(model, rows)(vector, 0.7)
    plain = plain_model(model)
    block = plain.model.layers[1]  # type: ignore[union-attr]
    total, count = 0.0, 0
    for row in rows:
        tokens = pad_rows([row], padding_id(model))
        first = row.kept.index(True) - 1
        with torch.no_grad():
            base = torch.log_softmax(plain(**tokens.inputs).logits[0, first:-1], -1)
            with added(block, 0.7 * 2.0 * vector.direction, slice(first, None)):
                steered = torch.log_softmax(plain(**tokens.inputs).logits[0, first:-1], -1)
        total += float((steered.exp() * (steered - base)).sum())
        count += sum(row.kept)
    assert measured == pytest.approx(total / count, rel=1e-3)


def test_no_steering_costs_nothing_and_too_little_text_is_refused(tiny_llama):
    assert DivergenceMeter(tiny_llama, _rows(tiny_llama))(_vector(tiny_llama), 0.0) == 0.0
    with pytest.raises(DataError, match="at least 200"):
        DivergenceMeter(tiny_llama, _rows(tiny_llama, n=2))


def test_what_a_system_prompt_costs_is_the_kl_row_by_row(tiny_llama):
    answers = [f"the {'little ' * n}house number {n} stands by the water" for n in range(1, 9)]
    answers += [f"{n} cats sat on the mat while the dog ran home" for n in range(9)]

    def rows(system: str | None):
        return encode_statements(tiny_llama.tokenizer, answers, "what?", system=system)

    base, prompted = rows(None), rows("You are kind, and you always listen.")
    model = plain_model(tiny_llama)

    def log_probs(row: Any) -> torch.Tensor:
        with torch.inference_mode():
            logits = model(torch.tensor([row.ids])).logits[0]
        places = [i - 1 for i, kept in enumerate(row.kept) if kept]
        return logits[places].double().log_softmax(-1)

    pairs = [(log_probs(a), log_probs(b)) for a, b in zip(base, prompted, strict=True)]
    total = sum(float((b.exp() * (b - a)).sum()) for a, b in pairs)
    tokens = sum(len(a) for a, _ in pairs)
    found = DivergenceMeter(tiny_llama, base).of_prompted(prompted)
    assert found == pytest.approx(total / tokens, rel=1e-4)
    assert found > 0.001
