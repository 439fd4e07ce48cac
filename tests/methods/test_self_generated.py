"""Pairs of the model's own completions, rated high against low."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from saesteer.methods.self_generated import self_generated

from saesteer.methods import self_generated as module
from saesteer.models import Site
from saesteer.steering import SteeringVector

# Six completions of each question; the number at the end is the rating.
WRITTEN = {
    "Why?": ["a b c 1", "a b c 6", "a b c 3", "a b c 2", "a b c 5", "b 99"],
    "How?": ["x y z 4", "x y z 4", "x y z 4", "x y", "", "only three words9"],
    "Who?": ["u v w 7"],
}
VECTOR: Any = None
MODEL: Any = None


@pytest.fixture
def asked(monkeypatch) -> list[dict[str, Any]]:
    """Put known completions in place of generated ones; return what was asked for."""
    calls: list[dict[str, Any]] = []

    def known(model: Any, questions: Any, vector: Any, strengths: Any, **how: Any) -> Any:
        calls.append({"strengths": strengths, **how})
        pairs = [(q, text) for q in questions for text in WRITTEN[q]]
        return SimpleNamespace(records=[SimpleNamespace(prompt=q, text=text) for q, text in pairs])

    monkeypatch.setattr(module, "generate", known)
    return calls


def last_number(texts: Any) -> np.ndarray:
    return np.array([float(text.split()[-1]) for text in texts])


def test_the_highest_is_paired_with_the_lowest_and_so_on(asked):
    found = self_generated(MODEL, ["Why?"], VECTOR, [0.3, -0.2], last_number, n_pairs=2)
    assert found == {
        "questions": ["Why?", "Why?"],
        "high": ["a b c 6", "a b c 5"],
        "low": ["a b c 1", "a b c 2"],
    }
    assert asked[0]["strengths"] == [0.3, -0.2]
    # As users decode.
    assert (asked[0]["temperature"], asked[0]["top_p"]) == (0.7, 0.9)


def test_short_texts_are_not_even_rated_and_equal_ratings_or_lone_completions_give_no_pair(asked):
    seen: list[str] = []

    def rate(texts: Any) -> np.ndarray:
        seen.extend(texts)
        return last_number(texts)

    found = self_generated(MODEL, ["How?", "Who?"], VECTOR, [1.0], rate, n_pairs=3)
    assert not any(found.values())
    assert seen and all(len(text.split()) >= 4 for text in seen)


def test_a_model_writes_the_same_pairs_under_the_same_seed(tiny_llama):
    vector = SteeringVector.from_raw(
        np.linspace(-1, 1, 32), site=Site(1), model="tiny", residual_norm=1.0, method="test"
    )

    def letters(texts: Any) -> np.ndarray:
        return np.array([float(text.count("e")) for text in texts])

    questions = ["Who are you?", "What do you think about the weather?"]

    def write(seed: int) -> Any:
        return self_generated(
            tiny_llama, questions, vector, [0.5, -0.5], letters, max_new_tokens=24, seed=seed
        )

    first = write(0)
    assert first["high"] and set(first["questions"]) <= set(questions)
    assert (letters(first["high"]) > letters(first["low"])).all()
    assert all(len(text.split()) >= 4 for text in (*first["high"], *first["low"]))
    assert write(0) == first
    assert write(1) != first
