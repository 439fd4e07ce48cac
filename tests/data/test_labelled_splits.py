"""Splits of labelled texts: what stands together stays together."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.data.labelled import LabelledSet, LabelledText, read_labelled
from saesteer.data.labelled_splits import split_labelled, text_groups
from saesteer.utils.errors import ConfigError, DataError


def make_set(rows: list[tuple[str, str, str]]) -> LabelledSet:
    texts = tuple(
        LabelledText(f"t{n}", text, label, group) for n, (text, label, group) in enumerate(rows)
    )
    return LabelledSet("made", texts, tuple(sorted({r[1] for r in rows})), "made")


@pytest.fixture(scope="module")
def bundled():
    texts = read_labelled("sentiment")
    return texts, split_labelled(texts, test=0.25, judge=0.2, seed=1)


def parts(split):
    return (split.train, split.test, split.judge)


def test_every_text_stands_in_exactly_one_part(bundled):
    texts, split = bundled
    assert sorted(np.concatenate(parts(split)).tolist()) == list(range(len(texts)))


def test_no_declared_group_and_no_near_duplicate_stands_in_two_parts(bundled):
    texts, split = bundled
    for groups in (split.groups, np.array([t.group for t in texts.texts])):
        held = [set(groups[part].tolist()) for part in parts(split)]
        assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]


def test_parts_have_the_sizes_and_class_shares_asked_for(bundled):
    texts, split = bundled
    for part, share in zip(parts(split), (0.55, 0.25, 0.2), strict=True):
        assert len(part) == pytest.approx(share * len(texts), abs=12)
        counts = np.bincount(texts.labels[part], minlength=3) / len(part)
        assert np.allclose(counts, 1 / 3, atol=0.03)


def test_a_count_is_met_exactly_where_texts_stand_alone():
    rows = [(f"{n} {chr(97 + n % 26) * 9}", "ab"[n % 2], f"g{n}") for n in range(100)]
    split = split_labelled(make_set(rows), test=20, judge=10, near_duplicate=None)
    assert [len(part) for part in parts(split)] == [70, 20, 10]


def test_the_seed_decides_and_repeats(bundled):
    texts, split = bundled
    again = split_labelled(texts, test=0.25, judge=0.2, seed=1)
    other = split_labelled(texts, test=0.25, judge=0.2, seed=2)
    assert np.array_equal(split.test, again.test)
    assert not np.array_equal(split.test, other.test)


def test_groups_are_linked_through_near_duplicates():
    rows = [
        ("the film was very good indeed", "a", "one"),
        ("quite another sentence here", "b", "one"),
        ("The film was very good indeed!", "a", "two"),
        ("nothing like the others at all", "b", "three"),
    ]
    texts = make_set(rows)
    groups = text_groups(texts, threshold=0.5)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    declared = text_groups(texts, threshold=None)
    assert declared[0] == declared[1] != declared[2]


def test_a_part_without_a_class_is_refused():
    rows = [(f"word{n}", "a", f"g{n}") for n in range(20)]
    rows += [(f"other{n}", "b", "one group") for n in range(5)]
    with pytest.raises(DataError, match="the test part has no text of class 'b'"):
        split_labelled(make_set(rows), test=5, near_duplicate=None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"test": 0}, "leave nothing"),
        ({"test": 30}, "leave nothing"),
        ({"test": 20, "judge": 10}, "leave nothing"),
        ({"test": -1}, "test is -1"),
        ({"test": 2.5}, "test is 2.5"),
    ],
)
def test_sizes_that_leave_nothing_are_refused(sizes, message):
    rows = [(f"word{n}", "ab"[n % 2], f"g{n}") for n in range(30)]
    with pytest.raises(ConfigError, match=message):
        split_labelled(make_set(rows), near_duplicate=None, **sizes)
