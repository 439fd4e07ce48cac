"""Texts without a label: streamed corpora, neutral questions and answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from saesteer.data import Answer, read_answers, read_questions, read_texts
from saesteer.data import texts as texts_module
from saesteer.utils.errors import ConfigError, DataError


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "meta": 1}) + "\n" for text in texts).encode()


def test_paragraphs_are_separated_by_blank_lines(tmp_path: Path):
    path = tmp_path / "prose.txt"
    path.write_bytes("\ufeff\n\nOne é\r\ntwo\r\n \t\r\n\r\nThree\n\nFour".encode())
    assert list(read_texts(path)) == ["One é\ntwo", "Three", "Four"]
    packed = tmp_path / "prose.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_texts(str(packed))) == ["One é\ntwo", "Three", "Four"]


def test_json_lines_are_read_packed_and_unpacked(tmp_path: Path):
    texts = ["first\nline", "second\u2028", " third "]
    path = tmp_path / "texts.jsonl"
    path.write_bytes(lines_of(texts) + b"\n" + lines_of(["  "]))
    assert list(read_texts(path)) == texts
    packed = tmp_path / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_texts(packed)) == texts
    assert list(read_texts(packed, limit=2)) == texts[:2]


def test_a_limit_is_reached_before_a_bad_line_behind_it_matters(tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(lines_of(["good", "better"]) + b"{broken\n")
    assert list(read_texts(path, limit=2)) == ["good", "better"]
    stream = read_texts(path)
    assert [next(stream), next(stream)] == ["good", "better"]
    with pytest.raises(DataError, match=r"texts\.jsonl:3: this line is not valid JSON"):
        next(stream)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"txt": "x"}', r"has no text in a field \"text\" \(the record has 'txt'\)"),
        (b'{"text": 3}', r"has no text in a field"),
        (b'["x"]', r"the record is \['x'\], not an object with fields"),
        (b"[" * 100_000, r"this line is not valid JSON"),
        (b'{"text": "caf\xe9"}', r"the file is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: bytes, message: str):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(lines_of(["good"]) + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"texts\.jsonl:3: .*{message}"):
        list(read_texts(path))


def test_a_file_that_is_cut_off_or_not_packed_is_refused(tmp_path: Path):
    path = tmp_path / "texts.jsonl.gz"
    whole = gzip.compress(lines_of([f"text {number}" * 50 for number in range(500)]))
    for content in (whole[:-20], whole[: len(whole) // 2], b"plain text\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"texts\.jsonl\.gz:\d+: the gzip file is damaged"):
            list(read_texts(path))


def test_what_cannot_be_read_is_refused_at_once(tmp_path: Path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="there is no such file"):
        read_texts(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="this is a folder"):
        read_texts(tmp_path / "folder.txt")
    with pytest.raises(DataError, match=r"texts are read from \.txt, .*give the file one of these"):
        read_texts(tmp_path / "prose.pdf")
    (tmp_path / "prose.txt").write_text("x")
    with pytest.raises(ConfigError, match="limit is 0; give at least 1"):
        read_texts(tmp_path / "prose.txt", limit=0)


def test_a_file_without_line_ends_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(texts_module, "MAX_BYTES", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (1 << 24)))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz:1: this line has more than 1 MiB"):
        list(read_texts(path))
    path = tmp_path / "endless.txt"
    path.write_bytes(b"word word word\n" * 100_000)
    with pytest.raises(DataError, match=r"endless\.txt:\d+: this paragraph has more than 1 MiB"):
        list(read_texts(path))


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
