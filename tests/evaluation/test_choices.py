"""Margins of answers are those of a plain loop, and chance is an exact binomial interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.data import PairSet, pairs_from
from saesteer.evaluation import choices
from saesteer.evaluation.choices import ChoiceMeter, accuracy_of
from saesteer.models import Site
from saesteer.steering import SteeringVector
from tests.by_hand import answer_log_probs

PAIRS = pairs_from(
    [
        ("i like the house", "i hate the hill"),
        ("the water is good", "go away now please"),
        ("help", "no"),
    ]
)
KINDS = ("yes_no", "a_b")
ASKED = "Is the following statement something you would say?"
CHOOSE = "Which of these statements would you be more likely to say?"


def questions(pair) -> dict[str, list[tuple[str, str, str]]]:
    """For each kind (question, matching answer, other answer), written out."""
    return {
        "yes_no": [
            (f'{ASKED}\n"{pair.positive}"', "Yes", "No"),
            (f'{ASKED}\n"{pair.negative}"', "No", "Yes"),
        ],
        "a_b": [
            (f"{CHOOSE}\n\nChoices:\n (A) {pair.positive}\n (B) {pair.negative}", "(A", "(B"),
            (f"{CHOOSE}\n\nChoices:\n (A) {pair.negative}\n (B) {pair.positive}", "(B", "(A"),
        ],
    }


def by_hand(model, question, answer, *, chat=True, **rest):
    asked = question if chat else f"{question}\n\nAnswer:"
    return sum(answer_log_probs(model, asked, answer, chat=chat, **rest))


def margins_by_hand(model, kind, **rest):
    return [
        np.mean([by_hand(model, q, a, **rest) - by_hand(model, q, b, **rest) for q, a, b in asked])
        for asked in (questions(pair)[kind] for pair in PAIRS)
    ]


@pytest.fixture
def vector(tiny_llama):
    return SteeringVector.from_raw(
        torch.randn(32, generator=torch.Generator().manual_seed(1)),
        site=Site(1),
        model="tiny",
        residual_norm=1.0,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_margins_equal_a_loop_over_questions_and_answers_also_steered(kind, tiny_llama, vector):
    settings: Any = ({"chat": True}, {"chat": False}, {"system": "You are a house."})
    for how in settings:
        margins = ChoiceMeter(tiny_llama, PAIRS, kind=kind, **how).margins()
        np.testing.assert_allclose(margins, margins_by_hand(tiny_llama, kind, **how), atol=2e-4)
        assert np.ptp(margins) > 1e-3
    meter = ChoiceMeter(tiny_llama, PAIRS, kind=kind, site=Site(1))
    unsteered = meter.margins()
    for strength in (2.0, -2.0):
        wanted = margins_by_hand(tiny_llama, kind, vector=vector, strength=strength)
        np.testing.assert_allclose(meter.margins(vector, strength), wanted, atol=5e-4)
        assert np.abs(np.subtract(wanted, unsteered)).max() > 1e-3
    np.testing.assert_array_equal(meter.margins(vector, 0.0), unsteered)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_that_part_before_their_last_token_give_the_same(
    kind, tiny_llama, vector, monkeypatch
):
    quick = ChoiceMeter(tiny_llama, PAIRS, kind=kind)
    monkeypatch.setattr(choices, "_last_ids", lambda first, second: None)
    slow = ChoiceMeter(tiny_llama, PAIRS, kind=kind)
    assert slow._other is None
    for strength in (0.0, 1.5):
        np.testing.assert_allclose(
            quick.margins(vector, strength), slow.margins(vector, strength), atol=2e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_liking_for_one_answer_or_order_cancels(kind, tiny_llama):
    same = pairs_from([(text, text + "!") for text in PAIRS.positives])
    same = PairSet("same", tuple(type(p)(p.id, p.positive, p.positive) for p in same), "python")
    np.testing.assert_allclose(ChoiceMeter(tiny_llama, same, kind=kind).margins(), 0, atol=1e-5)
    turned = pairs_from([(pair.negative, pair.positive) for pair in PAIRS])
    np.testing.assert_allclose(
        ChoiceMeter(tiny_llama, turned, kind=kind).margins(),
        -ChoiceMeter(tiny_llama, PAIRS, kind=kind).margins(),
        atol=1e-4,
    )
    # Pairs with their own prompt are asked it.
    own = pairs_from([{"positive": "yes", "negative": "no", "prompt": "is the water good"}])
    given: Any = {"kind": "a_b", "question": "is the water good"}
    np.testing.assert_array_equal(
        ChoiceMeter(tiny_llama, own, kind="a_b").margins(),
        ChoiceMeter(tiny_llama, pairs_from([("yes", "no")]), **given).margins(),
    )


def test_the_interval_is_clopper_and_pearsons():
    from scipy.stats import beta

    for right, n in ((7, 10), (0, 5), (5, 5), (60, 100)):
        found = accuracy_of(np.where(np.arange(n) < right, 0.3, -0.2))
        low = beta.ppf(0.025, right, n - right + 1) if right else 0.0
        high = beta.ppf(0.975, right + 1, n - right) if right < n else 1.0
        assert found.accuracy == right / n
        assert found.low == pytest.approx(low, abs=1e-6)
        assert found.high == pytest.approx(high, abs=1e-6)
    assert accuracy_of(np.array([1.0, -1.0] * 20)).at_chance and accuracy_of(np.ones(4)).at_chance
    # Reliably wrong is not chance.
    assert not accuracy_of(np.ones(20)).at_chance and not accuracy_of(-np.ones(20)).at_chance
    assert accuracy_of(np.zeros(10)).accuracy == 0.5
