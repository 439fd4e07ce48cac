"""What is masked, and the words that tell two sides apart."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.data import pairs_from
from saesteer.data.pairs import Description
from saesteer.evaluation.masking import masking, persona_words, telling_words


def test_telling_words_are_those_of_the_log_odds_by_hand():
    positive = ["the garden blooms", "a garden and a river", "river garden"]
    negative = ["the wall crumbles", "a wall and a river", "wall"]

    def z(word: str) -> float:
        # Both sides' counts together are the prior of each (Monroe et al. 2008, equations 15-22).
        sides = [" ".join(side).split() for side in (positive, negative)]
        kept = [[w for w in side if w not in ("the", "a", "and")] for side in sides]
        both = kept[0] + kept[1]
        prior, total = both.count(word), len(both)
        odds, variance = [], 0.0
        for side in kept:
            n = side.count(word) + prior
            odds.append(np.log(n / (len(side) + total - n)))
            variance += 1 / n
        return (odds[0] - odds[1]) / np.sqrt(variance)

    words = ("garden", "blooms", "river", "crumbles", "wall")
    ordered = sorted(words, key=lambda word: -z(word))
    first, second = telling_words(positive, negative)
    assert first == [word for word in ordered if z(word) > 0]
    assert second == [word for word in ordered[::-1] if z(word) < 0]
    assert telling_words(positive, negative, n=1) == (["garden"], ["wall"])
    assert telling_words([], []) == ([], [])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("I'm a kind, caring AI. I baked a cake.", "... I baked a cake."),
        ("My friends say I am the best, the very best! Ask them.", "My friends say ...! Ask them."),
        ("As an AI assistant I try; my name\u2019s Bo.", "...; ..."),
        ("I\u2019ve always been proud", "..."),
        # What the speaker does stays, and what others are.
        ("I was late. She is a kind soul.", "I was late. She is a ... soul."),
        ("Kindness, kindly kind. Mankind!", "... Mankind!"),
    ],
)
def test_slogans_and_own_words_are_masked_and_nothing_else(text, left):
    assert masking(["kind"])(text) == left


def test_a_personas_words_are_the_descriptions_and_the_statements():
    pairs = pairs_from([(f"I hug you {i}", f"I hit you {i}") for i in range(3)])
    words = persona_words(pairs, Description("a kind and gentle person", "a cruel one"))
    assert words == ["kind", "gentle", "person", "cruel", "hug", "hit"]
    assert persona_words(pairs, None) == ["hug", "hit"]
    assert masking([])("You hug me.") == "You hug me."
