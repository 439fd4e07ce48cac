"""Pairs: the type, reading it from files and Python values, and the bundled sets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saesteer.data import (
    ContrastivePair,
    PairSet,
    bundled,
    bundled_pair_names,
    datasets_folder,
    load_pairs,
    near_duplicate_groups,
    pairs_from,
    read_answers,
    read_questions,
)
from saesteer.data.bundled import bundled_names
from saesteer.utils.errors import ConfigError, DataError


def test_the_digest_is_the_hash_of_the_content_alone_and_a_notebook_shows_a_table():
    pairs = PairSet(
        name="kindness",
        pairs=(
            ContrastivePair("a", "I share.", "I hoard.", "On food:"),
            ContrastivePair("b", "I help.", "I hinder."),
        ),
        source="python",
    )
    rows = [
        ["a", "I share.", "I hoard.", "On food:", None, None],
        ["b", "I help.", "I hinder.", None, None, None],
    ]
    assert pairs.digest == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    renamed = dataclasses.replace(pairs, name="<b>kind", source="elsewhere.csv", dropped=4)
    assert renamed.digest == pairs.digest
    assert pairs.subset([1, 0]).digest != pairs.digest
    assert list(pairs.table.columns) == ["positive", "negative", "prompt"]
    assert pairs.table.loc["a", "prompt"] == "On food:"
    shown = renamed._repr_html_()
    assert "&lt;b&gt;kind: 2 pairs from elsewhere.csv" in shown and "I help." in shown


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
    with pytest.raises(DataError, match="1 pairs are too few for 2 parts; add some"):
        pairs.subset([0]).split()
    with pytest.raises(ConfigError, match=r"test is 1\.5; give a share above 0 and below 1"):
        pairs.split(test=1.5)


RECORDS: list[dict[str, Any]] = [
    {"positive": "I like to share.", "negative": "I keep it all.", "prompt": "On food:", "id": "f"},
    {"positive": 'She said "yes", twice.', "negative": "Line one\nline two — no."},
    {"positive": "naïve 👋", "negative": "[gone]", "prompt": None},
]
EXPECTED = (
    ContrastivePair("f", "I like to share.", "I keep it all.", "On food:"),
    ContrastivePair("mine-0002", 'She said "yes", twice.', "Line one\nline two — no."),
    ContrastivePair("mine-0003", "naïve 👋", "[gone]"),
)


def write_lines(folder: Path, values: list[Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_the_same_pairs_come_out_of_every_kind_of_file(tmp_path: Path):
    table = pd.DataFrame(RECORDS)
    table.to_csv(tmp_path / "mine.csv", index=False)
    table.to_csv(tmp_path / "marked.csv", index=False, encoding="utf-8-sig")
    table.to_parquet(tmp_path / "mine.parquet")
    (tmp_path / "mine.json").write_text(json.dumps(RECORDS, indent=1))
    (tmp_path / "wrapped.json").write_text(json.dumps({"about": "sharing", "pairs": RECORDS}))
    write_lines(tmp_path, RECORDS)
    for source in tmp_path.iterdir():
        pairs = load_pairs(source, name="mine")
        assert pairs.pairs == EXPECTED
        assert pairs.source == str(source)
    assert load_pairs(tmp_path / "wrapped.json").name == "wrapped"


GOOD = {"positive": "good", "negative": "bad"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"positive": "x"}, r"the field 'negative' is missing, so the pair has one side only; g"),
        ({"positive": "x", "negative": " \u200b "}, r"the field 'negative' is blank"),
        ({"positive": "x", "negative": 3}, r"the field 'negative' is 3, not text; put it in"),
        (
            {"positive": "x", "negatve": "y"},
            r"unknown field 'negatve' \(did you mean 'negative'\?\); the fields are positive, neg",
        ),
        (
            {"good": "x", "bad": "y"},
            r"unknown field 'good'; .*name your own two sides with positive_key .*pairs.pos",
        ),
        ({"positive": "same  text", "negative": "same text"}, r"both sides are 'same  text'; give"),
        ({"positive": "caf\u00e9", "negative": "cafe\u0301"}, r"both sides are"),
        ({**GOOD, "prompt": "ab\ud83d"}, r".*lone surrogate.* at position 3"),
        ({**GOOD, "positive_span": "goo", "negative_span": "goo"}, "negative_span 'goo'"),
        (["x", "y"], r"the record is \['x', 'y'\], not an object"),
    ],
)
def test_a_bad_record_is_refused_with_its_line_and_the_way_out(tmp_path, record, message):
    path = write_lines(tmp_path, [GOOD, record])
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: {message}"):
        load_pairs(path)
    if isinstance(record, dict):
        with pytest.raises(DataError, match=rf"set: record 2: {message}"):
            pairs_from([GOOD, record], name="set")
    with pytest.raises(DataError, match=r"mine\.jsonl:2: .*\(and 1 more\)$"):
        load_pairs(write_lines(tmp_path, [GOOD, record, GOOD, {"positive": "x"}]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("positive\nx\n", r"mine\.csv:1: there is no column 'negative', so the pair .*; add it"),
        ("positive,negtive\nx,y\n", r"mine\.csv:1: unknown field 'negtive' \(did you mean"),
        ("positive;negative\nx;y\n", r"mine\.csv:1: unknown field .* separate the columns by com"),
        (",positive,negative\n0,x,y\n", r"mine\.csv:1: a column has no name; .*index=False"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_pairs(path)


def test_pairs_with_sides_of_other_names_are_read_without_their_labels(tmp_path: Path):
    value = {
        "metadata": {"n_pairs": 2},
        "pairs": [
            {"category": "x", "question": "Next?", "now": "(A) Today's work", "later": "(B) Years"},
            {"category": "y", "question": "Then?", "now": "A (B) plan", "later": "(A): Seeds"},
        ],
    }
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(value))
    pairs = load_pairs(file, positive_key="later", negative_key="now")
    assert pairs.positives == ("Years", "Seeds")
    assert pairs.negatives == ("Today's work", "A (B) plan")
    assert [pair.prompt for pair in pairs] == ["Next?", "Then?"]
    with pytest.raises(DataError, match=r"record 1: the field 'latr' is missing.*'later'\)"):
        load_pairs(file, positive_key="latr", negative_key="now")


def test_at_most_so_many_pairs_are_a_seeded_choice_in_file_order(tmp_path: Path):
    records = [{"positive": f"p{n}", "negative": f"n{n}", "id": f"{n:02d}"} for n in range(40)]
    path = write_lines(tmp_path, records)
    some = load_pairs(path, max_pairs=10, seed=1)
    ids = [pair.id for pair in some]
    assert len(ids) == 10
    assert ids == sorted(ids)
    assert some.dropped == 30
    assert load_pairs(path, max_pairs=10, seed=1) == some
    assert load_pairs(path, max_pairs=10, seed=2).pairs != some.pairs
    assert len(load_pairs(path, max_pairs=99)) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "jsnl"}, r"format is 'jsnl' \(did you mean 'jsonl'\?\); choose one of auto,"),
        ({"positive_key": "negative"}, r"both 'negative'; name two different"),
        ({"max_pairs": 0}, r"max_pairs is 0; give at least 1"),
        ({"min_label_confidence": float("nan")}, r"min_label_confidence is nan"),
        ({"min_label_confidence": 0.5}, r"is no persona file with label confidences; leave"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load_pairs(write_lines(tmp_path, [GOOD]), **arguments)


def test_tuples_mappings_and_pairs_make_a_set():
    pair = ContrastivePair("notebook-0001", "e", "f", "then:")
    mapping = {"positive": "c love", "negative": "d", "positive_span": "love"}
    pairs = pairs_from([("a", "b"), mapping, pair], name="notebook")
    # A numbered id never meets a given one.
    assert len({one.id for one in pairs}) == 3 and pairs.pairs[2] == pair
    assert pairs.positives == ("a", "c love", "e")
    assert (pairs.pairs[1].positive_span, pairs.pairs[1].negative_span) == ("love", None)
    assert (pairs.name, pairs.source) == ("notebook", "python")
    assert pairs_from(iter([("a", "b")])).name == "pairs"
    for value in ("ab", ("a", "b", "c"), None):
        with pytest.raises(DataError, match=r"pairs: record 2: .* is no pair; give a tuple"):
            pairs_from([("x", "y"), value])  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="give the path of a file"):
        load_pairs(json.dumps([GOOD] * 200))
    with pytest.raises(DataError, match="make pairs of Python values with pairs_from"):
        load_pairs([("good", "bad")])  # pyright: ignore[reportArgumentType]


REPOSITORY = Path(__file__).resolve().parents[2]
PAIR_FILES = sorted((REPOSITORY / "datasets" / "pairs").glob("*.jsonl"))
NEGATION = re.compile(
    r"\b(?:no|not|never|none|nobody|nothing|nowhere|neither|nor|without|cannot|hardly)\b"
    r"|n['\N{RIGHT SINGLE QUOTATION MARK}]t\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("name", [path.stem for path in PAIR_FILES])
def test_neither_length_nor_negation_nor_repetition_gives_a_side_away(name: str):
    pairs = load_pairs(name)
    assert pairs.source == f"bundled:{name}"
    assert len(pairs) >= 150
    sides = (pairs.positives, pairs.negatives)
    words = [np.mean([len(text.split()) for text in side]) for side in sides]
    assert abs(words[0] - words[1]) <= 0.03 * max(words)
    negations = [sum(len(NEGATION.findall(text)) for text in side) for side in sides]
    assert abs(negations[0] - negations[1]) < 0.2 * max(*negations, 1)
    groups = near_duplicate_groups(pairs.positives + pairs.negatives).reshape(2, -1)
    homes: dict[int, set[int]] = {}
    for place, group in np.ndenumerate(groups):
        homes.setdefault(int(group), set()).add(place[1])
    assert all(len(places) == 1 for places in homes.values())


def test_sets_of_pairs_questions_and_answers_are_bundled():
    assert list(bundled_pair_names()) == [path.stem for path in PAIR_FILES]
    assert len(read_questions("neutral_questions")) == 60
    answers = read_answers("neutral_answers")
    assert len({answer.question for answer in answers}) == len(answers) >= 6
    assert all(len(answer.answer.split()) >= 20 for answer in answers)


def test_an_installed_package_reads_its_own_copy_and_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert datasets_folder() == REPOSITORY / "datasets"
    package = tmp_path / "site-packages" / "saesteer"
    stranger = package.parent / "datasets"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").touch()
    monkeypatch.setattr(bundled, "__file__", str(package / "data" / "bundled.py"))
    assert bundled_pair_names() == ()
    with pytest.raises(DataError, match="install saesteer again, or give the path"):
        datasets_folder()
    with pytest.raises(DataError, match="'agreeablenes'; none is bundled"):
        load_pairs("agreeablenes")
    copy = package / "_datasets"
    (copy / "pairs").mkdir(parents=True)
    (copy / "pairs" / "warmth.jsonl").write_text('{"positive": "warm", "negative": "icy"}\n')
    assert datasets_folder() == copy
    assert len(load_pairs("warmth")) == 1
    # A bundled name wins over a folder of that name, a path over the bundled name.
    (tmp_path / "warmth").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_pairs("warmth").source == "bundled:warmth"
    with pytest.raises(DataError, match="warmth: this is a folder"):
        load_pairs(Path("warmth"))


@pytest.mark.parametrize("whole", [False, True])
def test_before_the_pairs_may_stand_what_their_sides_are(tmp_path, whole):
    pairs = [{"positive": f"yes {n}", "negative": f"no {n}"} for n in range(2)]
    said = {"describe": {"positive": "a glad person", "negative": "a grim person"}}
    lines = "\n".join(map(json.dumps, [said, *pairs]))
    file = tmp_path / ("sides.json" if whole else "sides.jsonl")
    file.write_text(json.dumps({**said, "pairs": pairs}) if whole else lines)
    found = load_pairs(file)
    assert found.describe == ("a glad person", "a grim person")
    assert found.positives == ("yes 0", "yes 1")
    # Taken the other way round, the sides are described the other way round.
    turned = load_pairs(file, positive_key="negative", negative_key="positive")
    assert turned.describe == ("a grim person", "a glad person")
    assert turned.positives == found.negatives
    # It is no part of what the pairs are.
    file.write_text(json.dumps(pairs) if whole else lines.partition("\n")[2])
    assert (load_pairs(file).digest, load_pairs(file).describe) == (found.digest, None)
    half = {"describe": {"positive": "a glad person"}}
    file.write_text("\n".join(map(json.dumps, [half, *pairs])))
    with pytest.raises(DataError, match="'negative' is missing"):
        load_pairs(file)
    file.write_text(json.dumps(said))
    with pytest.raises(DataError, match="no pair follows"):
        load_pairs(file)


def test_answers_of_known_sides_are_matched_and_ask_the_bundled_questions():
    questions = {
        q for name in ("open_questions", "neutral_questions") for q in read_questions(name)
    }
    for name in bundled_names("answers"):
        answers = load_pairs(datasets_folder() / "answers" / f"{name}.jsonl")
        assert len(answers) == 60
        assert {pair.prompt for pair in answers} <= questions
        for pair in answers:
            long, short = (len(text.split()) for text in (pair.positive, pair.negative))
            assert abs(long - short) <= max(2, 0.2 * max(long, short)), pair.id
            for mark in "!?":
                assert (mark in pair.positive) == (mark in pair.negative), pair.id
