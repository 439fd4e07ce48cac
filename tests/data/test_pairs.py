from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from saesteer.data import ContrastivePair, PairSet, load_pairs, near_duplicate_groups
from saesteer.utils.errors import ConfigError, DataError


def make_set() -> PairSet:
    return PairSet(
        name="kindness",
        pairs=(
            ContrastivePair("a", "I share.", "I hoard.", "On food:"),
            ContrastivePair("b", "I help.", "I hinder."),
            ContrastivePair("c", "I listen.", "I interrupt."),
        ),
        source="python",
    )


def test_a_set_counts_iterates_and_gives_its_sides_in_order():
    pairs = make_set()
    assert len(pairs) == 3
    assert [pair.id for pair in pairs] == ["a", "b", "c"]
    assert pairs.positives == ("I share.", "I help.", "I listen.")
    assert pairs.negatives == ("I hoard.", "I hinder.", "I interrupt.")


def test_a_subset_keeps_the_order_asked_for_and_the_origin():
    pairs = make_set()
    subset = pairs.subset([2, 0])
    assert [pair.id for pair in subset] == ["c", "a"]
    assert (subset.name, subset.source) == ("kindness", "python")
    assert len(pairs) == 3
    assert len(pairs.subset([])) == 0


def test_the_digest_is_the_hash_of_the_content_and_of_nothing_else():
    pairs = make_set()
    rows = [
        ["a", "I share.", "I hoard.", "On food:", None, None],
        ["b", "I help.", "I hinder.", None, None, None],
        ["c", "I listen.", "I interrupt.", None, None, None],
    ]
    assert pairs.digest == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    renamed = dataclasses.replace(pairs, name="other", source="elsewhere.csv", dropped=4)
    assert renamed.digest == pairs.digest
    assert pairs.subset([1, 0, 2]).digest != pairs.digest


def test_text_moved_from_one_field_to_another_changes_the_digest():
    one = PairSet("x", (ContrastivePair("1", "ab", "c"),), "python")
    other = PairSet("x", (ContrastivePair("1", "a", "bc"),), "python")
    assert one.digest != other.digest


def test_a_pair_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_set().pairs[0].positive = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_split_is_seeded_whole_and_free_of_near_duplicates():
    pairs = load_pairs("agreeableness")
    train, test = pairs.split(test=0.3, seed=0)
    assert pairs.split(test=0.3, seed=0) == (train, test)
    assert pairs.split(test=0.3, seed=1) != (train, test)
    assert abs(len(test) - 0.3 * len(pairs)) <= 3
    assert len(train) + len(test) == len(pairs)
    texts = [*train.positives, *train.negatives, *test.positives, *test.negatives]
    groups = near_duplicate_groups(texts)
    n = 2 * len(train)
    assert not set(groups[:n].tolist()) & set(groups[n:].tolist())


def test_a_split_that_cannot_be_made_says_why():
    with pytest.raises(DataError, match="1 pairs are too few for 2 parts; add some"):
        make_set().subset([0]).split()
    with pytest.raises(ConfigError, match=r"test is 1\.5; give a share above 0 and below 1"):
        make_set().split(test=1.5)


def test_a_notebook_shows_pairs_as_a_table():
    pairs = make_set()
    assert list(pairs.table.columns) == ["positive", "negative", "prompt"]
    assert pairs.table.loc["a", "prompt"] == "On food:"
    shown = dataclasses.replace(pairs, name="<b>kind")._repr_html_()
    assert "&lt;b&gt;kind: 3 pairs from python" in shown
    assert "I listen." in shown
