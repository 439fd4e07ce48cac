from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from saesteer.data import ContrastivePair, pairs_from, read_pairs
from saesteer.data import readers as readers_module
from saesteer.utils.errors import ConfigError, DataError

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


def write_json(folder: Path, value: object, name: str = "mine.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return path


def write_lines(folder: Path, values: list[Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def write_csv(folder: Path, encoding: str) -> Path:
    path = folder / "mine.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, ["id", "negative", "positive", "prompt"])
        writer.writeheader()
        writer.writerows(RECORDS)
    return path


def test_the_same_pairs_come_out_of_every_kind_of_file(tmp_path: Path):
    sources = [
        write_json(tmp_path, RECORDS),
        write_json(tmp_path, {"about": "sharing", "pairs": RECORDS}, "wrapped.json"),
        write_lines(tmp_path, RECORDS),
        write_csv(tmp_path, "utf-8"),
    ]
    for source in sources:
        pairs = read_pairs(source, name="mine")
        assert pairs.pairs == EXPECTED
        assert pairs.source == str(source)
    assert read_pairs(write_csv(tmp_path, "utf-8-sig"), name="mine").pairs == EXPECTED


def test_the_set_is_called_like_its_file_unless_named(tmp_path: Path):
    path = write_json(tmp_path, RECORDS)
    assert read_pairs(path).name == "mine"
    assert read_pairs(str(path), name="sharing").name == "sharing"


def test_white_space_around_texts_is_taken_off_and_number_ids_become_text(tmp_path: Path):
    path = write_lines(tmp_path, [{"positive": "  a b ", "negative": "c\n", "id": 7}])
    assert read_pairs(path).pairs == (ContrastivePair("7", "a b", "c"),)


def test_a_numbered_id_never_meets_a_given_one(tmp_path: Path):
    records = [
        {"positive": "a", "negative": "b"},
        {"positive": "c", "negative": "d", "id": "mine-0001"},
    ]
    ids = [pair.id for pair in read_pairs(write_lines(tmp_path, records))]
    assert ids[1] == "mine-0001"
    assert len(set(ids)) == 2


GOOD = {"positive": "good", "negative": "bad"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"positive": "x"},
            r"the field 'negative' is missing, so the pair has one side only; give",
        ),
        ({"negative": "x"}, r"the field 'positive' is missing"),
        ({"positive": "x", "negative": " \u200b "}, r"the field 'negative' is blank"),
        ({"positive": "x", "negative": None}, r"the field 'negative' is missing"),
        ({"positive": "x", "negative": 3}, r"the field 'negative' is 3, not text; put it in"),
        ({"positive": ["x"], "negative": "y"}, r"the field 'positive' is \['x'\], not text"),
        ({**GOOD, "prompt": 1.5}, r"the field 'prompt' is 1\.5, not text"),
        ({**GOOD, "id": True}, r"the field 'id' is True, not text"),
        (
            {"positive": "x", "negatve": "y"},
            r"unknown field 'negatve' \(did you mean 'negative'\?\); the fields are positive, neg",
        ),
        ({**GOOD, "label": "x"}, r"unknown field 'label'; the fields are"),
        (
            {"good": "x", "bad": "y"},
            r"unknown field 'good'; .*name your own two sides with positive_key and negative_key",
        ),
        ({"positive": "same  text", "negative": "same text"}, r"both sides are 'same  text'; give"),
        (
            {"positive": "x" * 20_001, "negative": "y"},
            r"the field 'positive' has 20,001 characters, more th",
        ),
        (["x", "y"], r"the record is \['x', 'y'\], not an object"),
        ("x", r"the record is 'x', not an object"),
        (None, r"the record is None, not an object"),
    ],
)
def test_a_bad_record_is_refused_with_its_line_and_the_way_out(
    tmp_path: Path, record: object, message: str
):
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: {message}"):
        read_pairs(write_lines(tmp_path, [GOOD, record]))
    with pytest.raises(DataError, match=rf"mine\.json:\d+: record 2: {message}"):
        read_pairs(write_json(tmp_path, [GOOD, record]))
    if isinstance(record, dict):
        with pytest.raises(DataError, match=rf"set: record 2: {message}"):
            pairs_from([GOOD, record], name="set")


def test_the_first_of_many_bad_records_is_told_with_their_number(tmp_path: Path):
    records = [GOOD, {"positive": "x"}, GOOD, {"negative": "x"}, {"positive": 1}]
    with pytest.raises(DataError, match=r"mine\.jsonl:2: .*'negative' is missing.*\(and 2 more\)$"):
        read_pairs(write_lines(tmp_path, records))


def test_a_broken_line_counts_among_the_bad_records(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{broken\n" + json.dumps({"positive": "x"}) + "\n")
    with pytest.raises(DataError, match=r"mine\.jsonl:2: this line is not valid.*\(and 1 more\)$"):
        read_pairs(path)


def test_an_id_used_twice_is_refused_with_both_places(tmp_path: Path):
    records = [{**GOOD, "id": "a"}, {**GOOD, "id": "b"}, {**GOOD, "id": "a"}]
    with pytest.raises(DataError, match=r"jsonl:3: the id 'a' is taken by .*jsonl:1; give every"):
        read_pairs(write_lines(tmp_path, records))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("positive\nx\n", r"mine\.csv:1: there is no column 'negative', so no pair; add it"),
        ("positive,negtive\nx,y\n", r"mine\.csv:1: unknown field 'negtive' \(did you mean"),
        ("positive;negative\nx;y\n", r"mine\.csv:1: unknown field .* separate the columns by com"),
        (",positive,negative\n0,x,y\n", r"mine\.csv:1: a column has no name; .*index=False"),
        ("positive,negative\nx,y\nz,\n", r"mine\.csv:3: the field 'negative' is blank, so the"),
        ("positive,negative\nx,y\n\nz\n", r"mine\.csv:4: the row has 1 fields and the header 2"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(path)


def test_pairs_with_sides_of_other_names_are_read_without_their_labels(tmp_path: Path):
    value = {
        "metadata": {"n_pairs": 2},
        "pairs": [
            {"category": "x", "question": "Next?", "now": "(A) Today's work", "later": "(B) Years"},
            {"category": "y", "question": "Then?", "now": "A (B) plan", "later": "(A): Seeds"},
        ],
    }
    pairs = read_pairs(write_json(tmp_path, value), positive_key="later", negative_key="now")
    assert pairs.positives == ("Years", "Seeds")
    assert pairs.negatives == ("Today's work", "A (B) plan")
    assert [pair.prompt for pair in pairs] == ["Next?", "Then?"]
    with pytest.raises(DataError, match=r"record 1: the field 'latr' is missing.*'later'\)"):
        read_pairs(write_json(tmp_path, value), positive_key="latr", negative_key="now")


def test_at_most_so_many_pairs_are_a_seeded_choice_in_file_order(tmp_path: Path):
    records = [{"positive": f"p{n}", "negative": f"n{n}", "id": f"{n:02d}"} for n in range(40)]
    path = write_lines(tmp_path, records)
    some = read_pairs(path, max_pairs=10, seed=1)
    ids = [pair.id for pair in some]
    assert len(ids) == 10
    assert ids == sorted(ids)
    assert some.dropped == 30
    assert read_pairs(path, max_pairs=10, seed=1) == some
    assert read_pairs(path, max_pairs=10, seed=2).pairs != some.pairs
    assert len(read_pairs(path, max_pairs=99)) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "jsnl"}, r"format is 'jsnl' \(did you mean 'jsonl'\?\); choose one of auto,"),
        ({"positive_key": "negative"}, r"both 'negative'; name two different"),
        ({"max_pairs": 0}, r"max_pairs is 0; give at least 1"),
        ({"min_label_confidence": 1.5}, r"min_label_confidence is 1\.5; give"),
        ({"min_label_confidence": float("nan")}, r"min_label_confidence is nan"),
        ({"min_label_confidence": 0.5}, r"is no persona file with label confidences; leave"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        read_pairs(write_lines(tmp_path, [GOOD]), **arguments)


def test_a_bundled_name_wins_over_a_folder_and_a_path_over_the_bundled_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = write_lines(tmp_path, [GOOD], "kindness.jsonl")
    monkeypatch.setattr(readers_module, "bundled_pair_names", lambda: ("kindness",))
    monkeypatch.setattr(readers_module, "bundled_pairs_file", lambda name: bundle)
    work = tmp_path / "work"
    (work / "kindness").mkdir(parents=True)
    monkeypatch.chdir(work)
    pairs = read_pairs("kindness")
    assert (pairs.name, pairs.source, len(pairs)) == ("kindness", "bundled:kindness", 1)
    with pytest.raises(DataError, match="kindness: this is a folder"):
        read_pairs(Path("kindness"))


def test_a_name_that_is_not_bundled_is_refused_with_the_closest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers_module, "bundled_pair_names", lambda: ("agreeableness", "optimism"))
    with pytest.raises(DataError, match=r"called 'agreeablenes' \(did you mean 'agreeableness'\?"):
        read_pairs("agreeablenes")
    monkeypatch.setattr(readers_module, "bundled_pair_names", tuple)
    with pytest.raises(DataError, match=r"'agreeablenes'; none is bundled"):
        read_pairs("agreeablenes")


def test_text_in_place_of_a_path_and_values_in_place_of_a_source_are_refused():
    with pytest.raises(DataError, match="give the path of a file"):
        read_pairs(json.dumps([GOOD] * 200))
    with pytest.raises(DataError, match="make pairs of Python values with pairs_from"):
        read_pairs([("good", "bad")])  # pyright: ignore[reportArgumentType]


def test_tuples_mappings_and_pairs_make_a_set():
    pair = ContrastivePair("mine", "e", "f", "then:")
    pairs = pairs_from([("a", "b"), {"positive": "c", "negative": "d"}, pair], name="notebook")
    assert pairs.pairs == (
        ContrastivePair("notebook-0001", "a", "b"),
        ContrastivePair("notebook-0002", "c", "d"),
        pair,
    )
    assert (pairs.name, pairs.source) == ("notebook", "python")
    assert pairs_from(iter([("a", "b")])).name == "pairs"


@pytest.mark.parametrize("value", ["ab", ("a",), ("a", "b", "c"), 3, None, {1, 2}])
def test_a_python_value_that_is_no_pair_is_refused_with_its_number(value: Any):
    with pytest.raises(DataError, match=r"pairs: record 2: .* is no pair; give a tuple"):
        pairs_from([("x", "y"), value])


def test_tuples_of_other_things_than_text_are_refused():
    with pytest.raises(DataError, match=r"record 1: the field 'negative' is 2, not text"):
        pairs_from([("a", 2)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="there are no pairs; give at least one"):
        pairs_from([])


def test_ten_thousand_pairs_are_read_in_a_moment(tmp_path: Path):
    records = [{"positive": f"yes {n}", "negative": f"no {n}"} for n in range(10_000)]
    pairs = read_pairs(write_json(tmp_path, records))
    assert len(pairs) == 10_000
    assert pairs.pairs[-1].positive == "yes 9999"


def test_spans_are_read_and_must_stand_in_their_text(tmp_path):
    good = {"positive": "I love you", "negative": "I hate you", "positive_span": "love"}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(good) + "\n", encoding="utf-8")
    pair = read_pairs(file).pairs[0]
    assert (pair.positive_span, pair.negative_span) == ("love", None)
    file.write_text(json.dumps({**good, "negative_span": "love"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: negative_span 'love'"):
        read_pairs(file)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("kind\u200b words", "kind words"),
        ("kind\u00a0words", "kind words"),
        ("\ufb01ne", "fine"),
        ("co\u00adoperate", "cooperate"),
    ],
)
def test_one_text_in_two_unicode_forms_is_no_contrast(one: str, other: str):
    with pytest.raises(DataError, match=r"both sides are .*; give the negative side another text"):
        pairs_from([(one, other)])


@pytest.mark.parametrize(("one", "other"), [("CALM", "calm"), ("r\u00e9sum\u00e9", "resume")])
def test_case_and_accents_are_a_contrast(one: str, other: str):
    assert len(pairs_from([(one, other)])) == 1
