from __future__ import annotations

import pytest

from saesteer.data.checks import (
    MAX_CHARACTERS,
    collect,
    did_you_mean,
    is_blank,
    required_text,
    shorten,
    spoken_list,
)
from saesteer.utils.errors import DataError


def test_the_first_bad_item_is_told_with_the_number_of_the_others():
    def odd_only(number: int) -> int:
        if number % 2 == 0:
            raise DataError(f"{number} is even")
        return number * 10

    assert collect([1, 3], odd_only) == [10, 30]
    with pytest.raises(DataError, match=r"^2 is even$"):
        collect([1, 2, 3], odd_only)
    with pytest.raises(DataError, match=r"^2 is even \(and 2 more\)$"):
        collect([1, 2, 4, 6], odd_only)


@pytest.mark.parametrize("text", ["", "  \n\t", "\u200b", "\u00a0\ufeff", "\u2028"])
def test_text_that_shows_nothing_is_blank(text: str):
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", ".", "  \u200bé", "👋"])
def test_text_that_shows_something_is_not_blank(text: str):
    assert not is_blank(text)


def test_the_longest_text_allowed_passes_and_one_character_more_does_not():
    fits = "x" * MAX_CHARACTERS
    assert required_text({"positive": fits}, "positive", "f:1") == fits
    with pytest.raises(DataError, match=r"f:1: the field 'positive' has 20,001 characters"):
        required_text({"positive": fits + "x"}, "positive", "f:1")


def test_half_a_character_is_refused_before_a_tokenizer_meets_it():
    with pytest.raises(DataError, match=r"f:9: .*lone surrogate.* at position 3"):
        required_text({"positive": "ab\ud83d"}, "positive", "f:9")


def test_words_for_messages_are_cut_joined_and_guessed():
    assert shorten("x" * 100, 5) == "'xxxxx...'"
    assert shorten("a\nb") == r"'a\nb'"
    assert len(shorten({"key": "x" * 100})) <= 43
    assert spoken_list(["a"]) == "a"
    assert spoken_list(["a", "b", "c"]) == "a, b and c"
    assert did_you_mean("Negatve", ["positive", "negative"]) == " (did you mean 'negative'?)"
    assert did_you_mean("zzz", ["positive", "negative"]) == ""
