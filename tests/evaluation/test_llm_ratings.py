"""A rating is read out of a reply or it is missing, and the cache gives back what it was given."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from saesteer.evaluation.llm_ratings import LlmRating, LlmRatings, RatingCache, parse_rating
from saesteer.utils.errors import OutputError


def test_a_rating_of_zero_makes_the_mean_zero_and_a_missing_one_missing():
    assert LlmRating(0, 2, 2).harmonic_mean == 0
    assert LlmRating(None, 2, 2).harmonic_mean is None
    assert LlmRating(None, 0, 2).harmonic_mean is None


def test_the_harmonic_mean_is_scipys():
    from scipy.stats import hmean

    assert LlmRating(1, 2, 1.5).harmonic_mean == pytest.approx(hmean([1, 2, 1.5]))


def test_means_leave_missing_ratings_out():
    ratings = LlmRatings((LlmRating(2, 2, 2), LlmRating(None, 0, 1)), 6, 0, {})
    assert ratings.mean() == {
        "behaviour": 2,
        "instruction": 1,
        "fluency": 1.5,
        "harmonic_mean": 2,
        "n": 2,
        "n_missing": 1,
    }


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ('{"rating": 2}', 2),
        ('```json\n{"rating": 1}\n```', 1),
        ('Sure! {"rating": 0} as asked', 0),
        ('<think>{"rating": 2}? no</think>\n{"rating": 1.5}', 1.5),
        ('{"why": "it {is}", "rating": 1}', None),
    ],
)
def test_words_around_one_rating_are_forgiven(reply, rating):
    assert parse_rating(reply) == rating


def test_a_cache_gives_back_what_many_threads_gave_it(tmp_path):
    cache = RatingCache(tmp_path / "new" / "ratings.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.add(f"key{i}", i % 3), range(300)))
    again = RatingCache(tmp_path / "new" / "ratings.jsonl")
    assert [again.get(f"key{i}") for i in range(300)] == [i % 3 for i in range(300)]
    assert "other" not in again


def test_a_cache_without_a_file_lives_in_memory():
    cache = RatingCache(None)
    cache.add("a", 2)
    assert "a" in cache and cache.get("a") == 2


def test_rubbish_in_a_cache_is_no_rating(tmp_path):
    file = tmp_path / "ratings.jsonl"
    bad = [{"key": "a", "rating": 9}, {"key": "b", "rating": True}, {"key": "c"}, {"key": 1}]
    lines = [b"\xff\x00{", b"[]", b"null", *(json.dumps(b).encode() for b in bad)]
    file.write_bytes(b"\n".join([*lines, b'{"key": "d", "rating": 1}', b'{"key": "e", "rat']))
    cache = RatingCache(file)
    assert [cache.get(key) for key in "abcde"] == [None, None, None, 1, None]
    cache.add("e", 2)
    assert RatingCache(file).get("e") == 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match="cache of ratings"):
        RatingCache(tmp_path)
