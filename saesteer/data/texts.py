"""Texts without a label: what an SAE is trained on, and what steering's cost is measured on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from saesteer.data.bundled import datasets_folder
from saesteer.data.checks import check_unique, is_blank, plain_form
from saesteer.data.records import (
    SYNTAX_OF_SUFFIX,
    Record,
    RecordFile,
    check_is_file,
    json_line,
    read_records,
    read_text,
)
from saesteer.data.schema import Field, Schema, near_field
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.text import shorten

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
MAX_BYTES = 64 * 1024 * 1024
QUESTIONS = ("neutral_questions", "open_questions")
ANSWERS_NAME = "neutral_answers"
_QUESTION = Schema((Field("question", required=True), Field("id", kind="name")))
_ANSWER = Schema(
    (Field("question", required=True), Field("answer", required=True), Field("id", kind="name"))
)


class Answer(NamedTuple):
    question: str
    answer: str


def read_answers(source: str | Path) -> tuple[Answer, ...]:
    """Read questions with answers, in the order of the file.

    Args:
        source: Path of a JSONL, JSON, CSV or Parquet file with the fields question, answer and
            (optional) id; or "neutral_answers", the bundled ones.

    Raises:
        DataError: The source cannot be used; the sentence names file, line and field.
    """
    file = read_records(_path(source, (ANSWERS_NAME,)))
    return tuple(_ANSWER.read_file(file, lambda said, _: Answer(said["question"], said["answer"])))


def read_questions(source: str | Path) -> tuple[str, ...]:
    """Read questions, in the order of the file.

    Args:
        source: Path of a JSONL, CSV or Parquet file with the fields question and (optional) id, of
            a JSON list of such records or of strings, or of a plain text file with one question a
            line; or "neutral_questions" or "open_questions", the bundled ones.

    Raises:
        DataError: The source cannot be used, or a question stands there twice; the sentence names
            file, line and field.
    """
    path = _path(source, QUESTIONS)
    if path.suffix.lower() in SYNTAX_OF_SUFFIX or read_text(path).lstrip()[0] in "[{":
        file = read_records(path)
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        records = [Record(f"{path}:{number}", line) for number, line in lines if line.strip()]
        file = RecordFile(path, records)
    records = [
        replace(one, value={"question": one.value}) if isinstance(one.value, str) else one
        for one in file.records
    ]
    file = replace(file, records=records)
    placed = _QUESTION.read_file(file, lambda said, place: (place, said["question"]))
    check_unique(
        placed, "question", "remove one of the two", lambda text: plain_form(text).casefold()
    )
    return tuple(question for _, question in placed)


def _path(source: str | Path, bundled: Sequence[str]) -> Path:
    return datasets_folder() / f"{source}.jsonl" if source in bundled else Path(source)


def read_texts(path: str | Path, *, limit: int | None = None) -> Iterator[str]:
    """Stream the texts of a file, so that it never has to fit into memory; blank ones are left out.

    Args:
        path: A .txt file (paragraphs separated by blank lines) or a .jsonl file with the field
            text in every record, other fields being ignored; either may be gzipped (.gz).
        limit: Stop after this many texts; None for all.

    Raises:
        DataError: The file cannot be used (raised at once), or a line of it (raised on reaching
            it); the sentence names file and line.
        ConfigError: The limit is below 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give at least 1, or leave it out for all texts")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{path}: texts are read from {', '.join(SUFFIXES)}; give the file one of these names"
        )
    check_is_file(path)
    is_json = path.name.lower().removesuffix(".gz").endswith(".jsonl")
    return islice(_some(path, _json_texts(path) if is_json else _paragraphs(path)), limit)


def _some(path: Path, texts: Iterator[str]) -> Iterator[str]:
    first = next(texts, None)
    if first is None:
        raise DataError(f"{path}: the file holds no text; write at least one into it")
    yield first
    yield from texts


def _json_texts(path: Path) -> Iterator[str]:
    for place, line in _decoded(path):
        if not line.strip():
            continue
        record = json_line(place, line).fields()
        if not isinstance(record.get("text"), str):
            hint = "" if "text" in record else near_field("text", record)
            raise DataError(
                f"{place}: the line is {shorten(line.strip())} and has no text in a field "
                f'"text"{hint}; write it as {{"text": "..."}}'
            )
        if not is_blank(record["text"]):
            yield record["text"]


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for place, line in _decoded(path):
        if line.strip():
            lines.append(line.rstrip())
            size += len(line)
            if size > MAX_BYTES:
                raise _too_long(place, "paragraph", "separate paragraphs by blank lines")
        elif lines:
            yield "\n".join(lines)
            lines, size = [], 0
    if lines:
        yield "\n".join(lines)


def _decoded(path: Path) -> Iterator[tuple[str, str]]:
    """Decode line by line, so that a bad byte is reported where it stands."""
    for number, line in numbered_lines(path):
        place = f"{path}:{number}"
        try:
            yield place, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{place}: the file is not UTF-8; save it as UTF-8") from None


def numbered_lines(path: Path, *, called: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Read a file line by line, unpacking gzip; errors name it as `called`, by its path if None."""
    name, number = called or str(path), 0
    try:
        with path.open("rb") as plain:
            packed = path.suffix.lower() == ".gz" or plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            # A bounded readline(): a file without line ends must not be read as a whole.
            while line := file.readline(MAX_BYTES + 1):
                number += 1
                if len(line) > MAX_BYTES:
                    raise _too_long(f"{name}:{number}", "line", "split it")
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}:{number + 1}: the gzip file is damaged or cut off here ({error}); fetch or "
            "write it again"
        ) from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); check the file") from None


def _too_long(place: str, what: str, way_out: str) -> DataError:
    return DataError(f"{place}: this {what} has more than {MAX_BYTES // 2**20} MiB; {way_out}")
