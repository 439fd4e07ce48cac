"""Effects at matched cost, and what a system prompt costs, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.compare.measure import PersonaMeter
from saesteer.evaluation import DivergenceMeter
from saesteer.models import encode_statements, plain_model


class Linear:
    """Log-likelihoods that move with the strength, each pair at its own rate."""

    rates = np.array([[1.0, 2.0, -0.5], [0.5, 0.5, 0.5]])

    def log_likelihoods(self, vector: Any = None, strength: float = 0.0) -> np.ndarray:
        return -3.0 + self.rates * strength


def meter(kl: Any) -> PersonaMeter:
    propensity: Any = Linear()
    return PersonaMeter(kl, propensity)


def quadratic(vector: Any, strength: float, unit: str) -> float:
    # The negative side costs more.
    return strength**2 * (1.0 if strength > 0 else 4.0)


def test_the_effect_is_half_of_what_the_margin_moves_at_each_sides_own_strength():
    vector: Any = None
    found = meter(quadratic).at_budget(vector, 0.25)
    plus, minus = found["plus"]["strength"], found["minus"]["strength"]
    assert plus == pytest.approx(0.5, rel=0.02)
    assert minus == pytest.approx(-0.25, rel=0.02)
    moved = np.array([0.5, 1.5, -1.0]) * (plus - minus) / 2
    np.testing.assert_allclose(found["moved"], moved)
    assert found["effect"] == pytest.approx(moved.mean())
    assert found["moved_share"] == pytest.approx(2 / 3)
    shift = Linear.rates.mean() * (plus + minus) / 2
    assert found["common_shift"] == pytest.approx(shift)


def test_the_curve_scales_each_side_by_its_own_strength_and_its_slope_is_numpys():
    vector: Any = None
    measured = meter(quadratic)
    record = measured.at_budget(vector, 0.25)
    multiples = [1.5, -1.0, 0.0, 1.0, -0.5]
    curve = measured.curve(vector, record, multiples)
    plus, minus = record["plus"]["strength"], record["minus"]["strength"]
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
def test_a_budget_that_is_not_reached_is_a_result_without_effect(which):
    def flat(vector: Any, strength: float, unit: str) -> float:
        return 1e-6 if which == "both" or strength < 0 else strength**2

    vector: Any = None
    found = meter(flat).at_budget(vector, 0.25)
    assert found["effect"] is found["moved"] is None
    assert found["plus"]["reached"] is (which == "minus")
    assert not found["minus"]["reached"]
    assert found["minus"]["kl"] == 1e-6


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
