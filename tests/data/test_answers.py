"""Neutral questions and answers: read whole, or refused with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saesteer.data import Answer, read_answers, read_questions
from saesteer.utils.errors import DataError

QUESTIONS = ("What is rain?", "How does bread rise?", "Où est la gare?")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_same_questions_come_out_of_every_kind_of_file(tmp_path: Path):
    records: list[dict[str, Any]] = [
        {"id": number, "question": f" {question}"} for number, question in enumerate(QUESTIONS)
    ]
    records[0]["id"] = "first"
    sources = [
        write(tmp_path, "q.jsonl", "\n".join(json.dumps(record) for record in records)),
        write(tmp_path, "records.json", json.dumps(records, indent=2)),
        write(tmp_path, "strings.json", json.dumps(QUESTIONS)),
        write(tmp_path, "q.txt", "\n\n".join(QUESTIONS) + "\n"),
        write(tmp_path, "q.csv", "question\n" + "\n".join(QUESTIONS)),
        write(tmp_path, "bom.txt", "\ufeff" + "\r\n".join(QUESTIONS)),
        write(tmp_path, "no_suffix", json.dumps(QUESTIONS)),
    ]
    for source in sources:
        assert read_questions(source) == QUESTIONS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b"}', r"the field 'question' is missing"),
        ('{"question": "Why?", "topic": "x"}', r"unknown field 'topic'; the fields are question"),
        ('{"question": "what is rain?"}', r"the question 'what is rain\?' stands at .*q\.jsonl:1"),
        ('"\\u200b"', r"the field 'question' is blank"),
        ("3", r"the record is 3, not an object"),
    ],
)
def test_a_bad_question_is_refused_with_its_line(tmp_path: Path, line: str, message: str):
    path = write(tmp_path, "q.jsonl", f'{{"question": "What is rain?"}}\n{line}\n')
    with pytest.raises(DataError, match=rf"q\.jsonl:2: {message}"):
        read_questions(path)


def test_plain_lines_are_checked_as_records_are(tmp_path: Path):
    with pytest.raises(DataError, match=r"q\.txt:3: the question 'Why\?' stands at .*q\.txt:1 alr"):
        read_questions(write(tmp_path, "q.txt", "Why?\nHow?\nWhy?\n"))
    with pytest.raises(DataError, match=r"q\.txt:1: the field 'question' has 30,000 characters"):
        read_questions(write(tmp_path, "q.txt", "x" * 30_000))


def test_answers_come_out_of_every_kind_of_file(tmp_path: Path):
    records = [
        {"question": "Why, though?", "answer": "Because it is so.", "id": 1},
        {"question": "Who?", "answer": "You."},
    ]
    wanted = (Answer("Why, though?", "Because it is so."), Answer("Who?", "You."))
    assert read_answers(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)))) == wanted
    assert read_answers(str(write(tmp_path, "a.json", json.dumps(records)))) == wanted
    text = 'question,answer\n"Why, though?",Because it is so.\nWho?,You.\n'
    assert read_answers(write(tmp_path, "a.csv", text)) == wanted
    with pytest.raises(DataError, match=r"b\.csv:1: there is no column 'answer'; add it"):
        read_answers(write(tmp_path, "b.csv", "question\nWhy?\n"))
