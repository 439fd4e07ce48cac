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


@pytest.mark.parametrize("packed", [False, True])
def test_paragraphs_and_json_lines_are_read_packed_and_unpacked(tmp_path: Path, packed: bool):
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
        return path

    prose = "\ufeff\n\nOne é\r\ntwo\r\n \t\r\n\r\nThree\n\nFour".encode()
    assert list(read_texts(write("prose.txt", prose))) == ["One é\ntwo", "Three", "Four"]
    texts = ["first\nline", "second\u2028", " third "]
    path = write("texts.jsonl", lines_of(texts) + b"\n" + lines_of(["  "]) + b"{broken\n")
    # A limit is reached before a bad line behind it matters.
    assert list(read_texts(path, limit=3)) == texts
    stream = read_texts(path)
    assert [next(stream) for _ in texts] == texts
    with pytest.raises(DataError, match=r"texts\.jsonl\S*:6: this line is not valid JSON"):
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


def test_what_cannot_be_read_is_refused_at_once_and_a_damaged_file_where_it_ends(tmp_path: Path):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "prose.txt").write_text("x")
    for name, message in (
        ("gone.txt", "there is no such file"),
        ("folder.txt", "this is a folder"),
        ("prose.pdf", r"texts are read from \.txt, .*give the file one of these"),
    ):
        with pytest.raises(DataError, match=message):
            read_texts(tmp_path / name)
    with pytest.raises(ConfigError, match="limit is 0; give at least 1"):
        read_texts(tmp_path / "prose.txt", limit=0)
    whole = gzip.compress(lines_of([f"text {number}" * 50 for number in range(500)]))
    for content in (whole[: len(whole) // 2], b"plain text\n"):
        (tmp_path / "texts.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"texts\.jsonl\.gz:\d+: the gzip file is damaged"):
            list(read_texts(tmp_path / "texts.jsonl.gz"))


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
    table = write(tmp_path, "a.csv", 'question,answer\n"Why, though?",Because.\nWho?,You.\n')
    assert read_answers(table) == (Answer("Why, though?", "Because."), Answer("Who?", "You."))
    with pytest.raises(DataError, match=r"b\.csv:1: there is no column 'answer'; add it"):
        read_answers(write(tmp_path, "b.csv", "question\nWhy?\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "what is rain?"}', r"the question 'what is rain\?' stands at .*q\.jsonl:1"),
        ('{"question": "Why?", "topic": "x"}', r"unknown field 'topic'; the fields are question"),
        ("3", r"the record is 3, not an object"),
    ],
)
def test_a_bad_question_is_refused_with_its_line(tmp_path: Path, line: str, message: str):
    path = write(tmp_path, "q.jsonl", f'{{"question": "What is rain?"}}\n{line}\n')
    with pytest.raises(DataError, match=rf"q\.jsonl:2: {message}"):
        read_questions(path)
