from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saesteer.data import questions as questions_module
from saesteer.data import read_questions
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
    assert read_questions(str(sources[0])) == QUESTIONS


def test_the_bundled_questions_are_found_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path, "n.jsonl", '{"id": "a", "question": "Why?"}')
    monkeypatch.setattr(questions_module, "bundled_questions_file", lambda: path)
    assert read_questions("neutral_questions") == ("Why?",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b"}', r"the field 'question' is missing"),
        ('{"question": "  "}', r"the field 'question' is blank"),
        ('{"question": 4}', r"the field 'question' is 4, not text"),
        ('{"question": "Why?", "topic": "x"}', r"unknown field 'topic'; the fields are question"),
        ('{"qestion": "Why?"}', r"unknown field 'qestion' \(did you mean 'question'\?\)"),
        ('{"question": "what is rain?"}', r"the question 'what is rain\?' stands at .*q\.jsonl:1"),
        ('{"question": ', r"this line is not valid JSON"),
        ('"\\u200b"', r"the question is blank"),
        ("3", r"the record is 3, not an object"),
    ],
)
def test_a_bad_question_is_refused_with_its_line(tmp_path: Path, line: str, message: str):
    path = write(tmp_path, "q.jsonl", f'{{"question": "What is rain?"}}\n{line}\n')
    with pytest.raises(DataError, match=rf"q\.jsonl:2: {message}"):
        read_questions(path)


def test_a_repeated_line_and_an_endless_one_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"q\.txt:3: the question 'Why\?' stands at .*q\.txt:1 alr"):
        read_questions(write(tmp_path, "q.txt", "Why?\nHow?\nWhy?\n"))
    with pytest.raises(DataError, match=r"q\.txt:1: the question has 30,000 characters"):
        read_questions(write(tmp_path, "q.txt", "x" * 30_000))


def test_a_file_without_questions_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"q\.txt: the file is empty"):
        read_questions(write(tmp_path, "q.txt", "\n \n"))
    with pytest.raises(DataError, match="holds no records"):
        read_questions(write(tmp_path, "q.json", "[]"))
    with pytest.raises(DataError, match=r"gone\.txt: there is no such file"):
        read_questions(tmp_path / "gone.txt")
