"""Neutral answers: read whole, or refused with file and line."""

from __future__ import annotations

import json

import pytest

from saesteer.data import read_answers
from saesteer.data.answers import Answer
from saesteer.utils.errors import DataError


@pytest.fixture
def write(tmp_path):
    def make(text: str, name: str = "answers.jsonl"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def test_the_bundled_answers_are_neutral_and_enough():
    answers = read_answers("neutral_answers")
    assert len(answers) >= 6
    assert len({answer.question for answer in answers}) == len(answers)
    assert all(len(answer.answer.split()) >= 20 for answer in answers)


def test_every_format_gives_the_same_answers(write):
    records = [
        {"question": "Why, though?", "answer": "Because it is so."},
        {"question": "Who?", "answer": "You."},
    ]
    wanted = (Answer("Why, though?", "Because it is so."), Answer("Who?", "You."))
    assert read_answers(write("\n".join(map(json.dumps, records)))) == wanted
    assert read_answers(str(write(json.dumps(records), "answers.json"))) == wanted
    text = 'question,answer\n"Why, though?",Because it is so.\nWho?,You.\n'
    assert read_answers(write(text, "answers.csv")) == wanted


@pytest.mark.parametrize("id", ["a-1", 7, None])
def test_an_id_may_be_text_or_a_number_or_left_out(id, write):
    record = {"question": "Why?", "answer": "Because."} | ({} if id is None else {"id": id})
    assert read_answers(write(json.dumps(record))) == (Answer("Why?", "Because."),)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"question": "Why?"}, r"answers\.jsonl:2: the field 'answer' is missing"),
        ({"answer": "So."}, r"answers\.jsonl:2: the field 'question' is missing"),
        ({"question": "Why?", "answer": "  "}, r"answers\.jsonl:2: the field 'answer' is blank"),
        ({"question": "Why?", "answer": 3}, r"answers\.jsonl:2: the field 'answer' is 3, not"),
        ({"question": "Why?", "anser": "x"}, r":2: unknown field 'anser' \(did you mean 'answer'"),
        ({"question": "Why?", "answer": "So.", "id": 1.5}, r":2: the field 'id' is 1\.5, not text"),
        (["Why?", "So."], r"answers\.jsonl:2: "),
    ],
)
def test_a_bad_line_is_told_with_its_place(line, text, write):
    good = {"question": "Who?", "answer": "You."}
    with pytest.raises(DataError, match=text):
        read_answers(write(f"{json.dumps(good)}\n{json.dumps(line)}\n"))


def test_a_file_that_is_missing_empty_or_no_json_is_told(write, tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        read_answers(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"answers\.jsonl"):
        read_answers(write(""))
    with pytest.raises(DataError, match=r"answers\.jsonl:1"):
        read_answers(write('{"question": '))
