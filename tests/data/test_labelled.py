"""Reading labelled texts: the bundled sets, the three layouts, and files that cannot be used."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.data import (
    LabelledSet,
    LabelledText,
    check_trainable,
    load_texts,
    near_duplicate_groups,
)
from saesteer.data.splits import split_labelled, text_groups
from saesteer.utils.errors import ConfigError, DataError


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a CSV file: name, header, rows, encoding."""

    def make(name: str, header: str, *rows: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
        return path

    return make


def test_the_bundled_texts_are_many_balanced_and_not_alike():
    texts = load_texts("sentiment")
    assert len(texts) >= 1200
    assert texts.classes == ("negative", "neutral", "positive")
    assert len(set(np.bincount(texts.labels).tolist())) == 1
    words = {c: np.mean([len(t.text.split()) for t in texts.texts if t.label == c])
             for c in texts.classes}  # fmt: skip
    assert max(words.values()) / min(words.values()) < 1.03
    groups = near_duplicate_groups([text.text for text in texts.texts])
    assert len(set(groups.tolist())) == len(texts)


def test_the_plain_cases_hold_those_that_earlier_probes_missed():
    checks = load_texts("sentiment_checks")
    by_text = {text.text: text.label for text in checks.texts}
    assert by_text["I am feeling happy today"] == "positive"
    assert by_text["I am feeling sad today"] == "negative"
    assert len(checks) >= 42
    trained = {text.text.lower().rstrip(".!") for text in load_texts("sentiment").texts}
    assert not trained & {text.lower() for text in by_text}
    assert list(checks.table.columns) == ["text", "label", "group"]
    assert "I am feeling happy today" in checks._repr_html_()


def test_valence_becomes_three_classes_at_half_a_point(write):
    path = write("v.csv", "id,mean_valence,text", "1_1,0.5,a", "1_2,-0.5,b", "2,0.49,c", "3,-4,d")
    texts = load_texts(path)
    assert [t.label for t in texts.texts] == ["positive", "negative", "neutral", "negative"]
    # Sentences of one review belong together.
    assert [t.group for t in texts.texts] == ["1", "1", "2", "3"]
    strict = load_texts(path, threshold=2.0)
    assert [t.label for t in strict.texts] == ["neutral", "neutral", "neutral", "negative"]
    # Files of a folder share neither ids nor groups.
    write("w.csv", "id,mean_valence,text", "1_1,2,good")
    both = load_texts(path.parent)
    assert [t.id for t in both.texts] == ["v:1_1", "v:1_2", "v:2", "v:3", "w:1_1"]
    assert len({t.group for t in both.texts}) == 4


def test_any_fields_can_be_named_and_blanks_left_out(write):
    path = write("own.csv", "body,stars,shop", "yes,5,a", ",1,a", "no,1,a")
    named: Any = {"text_key": "body", "label_key": "stars", "group_key": "shop"}
    with pytest.raises(DataError, match=r"own\.csv:3: .*'body' is blank.*skip_blank"):
        load_texts(path, **named)
    texts = load_texts(path, **named, skip_blank=True)
    assert (texts.classes, texts.dropped) == (("1", "5"), 1)
    assert {t.group for t in texts.texts} == {"a"}
    with pytest.raises(DataError, match="class '1' has 1 texts"):
        check_trainable(texts)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("v.csv", ("id,mean_valence,text", "1,much,a"), r"v\.csv:2: .*'mean_valence' is 'much'"),
        ("l.csv", ("text,label", "a,"), r"l\.csv:2: the field 'label' is blank"),
        ("l.csv", ("words,label", "a,b"), r"l\.csv:1: there is no column 'text'"),
        ("l.csv", ("id,text,label", "1,a,b", "1,c,d"), r"l\.csv:3: the id '1' stands at .*:2"),
        ("t.csv", ("text,selected_text,sentiment", "a,z,b"), r"t\.csv:2: the field 'span' is 'z'"),
    ],
)
def test_a_bad_record_is_named_by_its_line(write, name, rows, message):
    with pytest.raises(DataError, match=message):
        load_texts(write(name, *rows))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "sentimnt"}, DataError, "did you mean 'sentiment'"),
        ({"source": "sentiment", "format": "tweet"}, ConfigError, "did you mean 'tweets'"),
        ({"source": "sentiment", "classes": ["positive"]}, ConfigError, "fewer than two"),
        ({"source": "sentiment", "classes": ["a", "b"]}, DataError, "is not among the classes"),
        ({"source": "sentiment", "threshold": 0}, ConfigError, "threshold is 0"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        load_texts(**arguments)


def test_the_human_rated_texts_are_all_read(shared_data):
    texts = load_texts(shared_data / "sentiment", format="valence")
    with (shared_data / "sentiment" / "tweets.csv").open(encoding="utf-8") as file:
        tweets = list(csv.DictReader(file))
    assert len(texts) == 23703
    own = [t for t in texts.texts if t.id.startswith("tweets:")]
    expected = ["positive" if float(r["mean_valence"]) >= 0.5 else
                "negative" if float(r["mean_valence"]) <= -0.5 else "neutral"
                for r in tweets]  # fmt: skip
    assert [t.label for t in own] == expected


def make_set(rows: list[tuple[str, str, str]]) -> LabelledSet:
    texts = tuple(
        LabelledText(f"t{n}", text, label, group) for n, (text, label, group) in enumerate(rows)
    )
    return LabelledSet("made", texts, tuple(sorted({r[1] for r in rows})), "made")


def test_no_group_and_no_near_duplicate_stands_in_two_parts_of_the_sizes_asked_for():
    texts = load_texts("sentiment")
    split = split_labelled(texts, test=0.25, judge=0.2, seed=1)
    parts = (split.train, split.test, split.judge)
    for groups in (split.groups, np.array([t.group for t in texts.texts])):
        held = [set(groups[part].tolist()) for part in parts]
        assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    for part, share in zip(parts, (0.55, 0.25, 0.2), strict=True):
        assert len(part) == pytest.approx(share * len(texts), abs=12)
        counts = np.bincount(texts.labels[part], minlength=3) / len(part)
        assert np.allclose(counts, 1 / 3, atol=0.03)
    rows = [(f"{n} {chr(97 + n % 26) * 9}", "ab"[n % 2], f"g{n}") for n in range(100)]
    alone = split_labelled(make_set(rows), test=20, judge=10, near_duplicate=None)
    assert [len(part) for part in (alone.train, alone.test, alone.judge)] == [70, 20, 10]


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


def test_parts_that_leave_nothing_or_lack_a_class_are_refused():
    rows = [(f"word{n}", "ab"[n % 2], f"g{n}") for n in range(30)]
    wrong: list[tuple[Any, str]] = [
        ({"test": 0}, "leave nothing"),
        ({"test": 20, "judge": 10}, "leave nothing"),
        ({"test": 2.5}, "test is 2.5"),
    ]
    for sizes, message in wrong:
        with pytest.raises(ConfigError, match=message):
            split_labelled(make_set(rows), near_duplicate=None, **sizes)
    rows = [(f"word{n}", "a", f"g{n}") for n in range(20)]
    rows += [(f"other{n}", "b", "one group") for n in range(5)]
    with pytest.raises(DataError, match="the test part has no text of class 'b'"):
        split_labelled(make_set(rows), test=5, near_duplicate=None)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_tweets_are_read_in_either_encoding_with_their_spans(write, encoding):
    rows = [
        'x1,"I love the café, truly",love the café,positive,France',
        "x2,so so,so so,Neutral,Peru",
    ]
    path = write("t.csv", "textID,text,selected_text,sentiment,Country", *rows, encoding=encoding)
    first, second = load_texts(path).texts
    assert (first.text, first.span) == ("I love the café, truly", "love the café")
    assert (first.label, second.label, second.id) == ("positive", "neutral", "x2")
    # A label that the settings do not name is refused by its line, or dropped.
    with pytest.raises(DataError, match=r"t\.csv:3: label 'neutral' \(did you mean 'neutrl'\?\)"):
        load_texts(path, classes=["neutrl", "positive"])
    texts = load_texts(path, classes=["negative", "positive"], drop_other=True)
    assert (texts.classes, texts.dropped) == (("negative", "positive"), 1)
    assert texts.labels.tolist() == [1]
