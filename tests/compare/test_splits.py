"""The four parts of a persona's pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from saesteer.data import PairSet, near_duplicate_groups, read_pairs
from saesteer.experiments.compare.config import SplitSettings
from saesteer.experiments.compare.splits import FEWEST, split_persona
from saesteer.utils.errors import DataError

PARTS = ("train", "validation", "test", "judge")
SIZES = SplitSettings(train=16, validation=6, test=8, judge=12)


@pytest.fixture
def pairs(compare_data) -> PairSet:
    return read_pairs(compare_data["kindly"])


def texts(part: PairSet) -> list[str]:
    return [*part.positives, *part.negatives]


def with_echoes(pairs: PairSet, tmp_path) -> PairSet:
    """The pairs, each followed by one that says nearly the same on one side."""
    listed, rows = list(pairs), []
    for number, pair in enumerate(listed):
        rows.append({"positive": pair.positive, "negative": pair.negative})
        echo = listed[(number + 1) % len(listed)]
        if number % 3 == 0:
            rows.append({"positive": f"{pair.positive} so", "negative": f"{echo.negative} uh"})
    file = tmp_path / "echoes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_pairs(file)


def test_the_parts_are_as_large_as_asked_and_share_no_pair(pairs):
    split = split_persona(pairs, SIZES, seed=0)
    assert [len(getattr(split, part)) for part in PARTS] == [16, 6, 8, 12]
    ids = [pair.id for part in PARTS for pair in getattr(split, part)]
    assert len(set(ids)) == len(ids)


def test_the_judges_pairs_are_the_same_under_every_seed_and_in_no_other_part(pairs):
    splits = [split_persona(pairs, SIZES, seed) for seed in range(5)]
    judge = splits[0].judge.positives
    assert all(split.judge.positives == judge for split in splits)
    for split in splits:
        others = {text for part in PARTS[:3] for text in texts(getattr(split, part))}
        assert not others & set(texts(split.judge))
    assert len({split.train.positives for split in splits}) == 5
    assert len({split.test.positives for split in splits}) == 5


def test_the_same_seed_gives_the_same_parts(pairs):
    first, second = (split_persona(pairs, SIZES, 3) for _ in range(2))
    assert [getattr(first, p).digest for p in PARTS] == [getattr(second, p).digest for p in PARTS]


@pytest.mark.parametrize("seed", range(4))
def test_no_statement_nor_its_near_duplicate_stands_in_two_parts(pairs, tmp_path, seed):
    doubled = with_echoes(pairs, tmp_path)
    split = split_persona(doubled, SIZES, seed)
    said = [(text, part) for part in PARTS for text in texts(getattr(split, part))]
    groups = near_duplicate_groups([text for text, _ in said], threshold=0.5)
    assert len(set(groups)) < len(groups)
    for group in set(groups.tolist()):
        assert len({said[i][1] for i in np.flatnonzero(groups == group)}) == 1


def test_a_smaller_set_is_shared_out_in_the_same_proportions(pairs):
    wide = SplitSettings(train=160, validation=60, test=80, judge=120)
    split = split_persona(pairs, wide, seed=0)
    sizes = [len(getattr(split, part)) for part in PARTS]
    assert sum(sizes) == 60
    np.testing.assert_allclose(sizes, np.array([160, 60, 80, 120]) / 420 * 60, atol=1.0)


@pytest.mark.parametrize("count", [1, 3, 12, 30])
def test_a_set_that_is_too_small_is_refused_with_its_file_and_the_way_out(pairs, count):
    few = pairs.subset(range(count))
    with pytest.raises(DataError) as error:
        split_persona(few, SIZES, seed=0)
    told = str(error.value)
    assert told.startswith(pairs.source)
    assert f"{count} pairs" in told
    assert "give more pairs" in told
    assert "\n" not in told


def test_the_smallest_set_that_works_leaves_every_part_enough(pairs):
    sizes = SplitSettings(train=8, validation=4, test=4, judge=20)
    split = split_persona(pairs.subset(range(20)), sizes, seed=0)
    for name, fewest in FEWEST.items():
        assert len(getattr(split, name)) >= fewest
