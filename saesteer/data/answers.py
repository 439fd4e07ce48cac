"""Neutral questions, and questions with answers: what steering's cost is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from saesteer.data.bundled import datasets_folder
from saesteer.data.checks import check_unique, plain_form
from saesteer.data.records import Record, RecordFile, read_records, read_text
from saesteer.data.schema import Field, Schema

QUESTIONS_NAME = "neutral_questions"
ANSWERS_NAME = "neutral_answers"
_RECORD_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
_QUESTION = Schema((Field("question", required=True), Field("id", kind="name")))
_ANSWER = Schema(
    (Field("question", required=True), Field("answer", required=True), Field("id", kind="name"))
)


class Answer(NamedTuple):
    """A question and its answer."""

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
    file = read_records(_find(source, ANSWERS_NAME))
    return tuple(
        _ANSWER.read_file(file, lambda said, place: Answer(said["question"], said["answer"]))
    )


def read_questions(source: str | Path) -> tuple[str, ...]:
    """Read questions, in the order of the file.

    Args:
        source: Path of a JSONL, CSV or Parquet file with the fields question and (optional) id, of
            a JSON list of such records or of strings, or of a plain text file with one question a
            line; or "neutral_questions", the bundled ones.

    Raises:
        DataError: The source cannot be used, or a question stands there twice; the sentence names
            file, line and field.
    """
    path = _find(source, QUESTIONS_NAME)
    if path.suffix.lower() in _RECORD_SUFFIXES or read_text(path).lstrip()[0] in "[{":
        file = read_records(path)
        records = [_as_record(record) for record in file.records]
        file = RecordFile(path, records, file.header)
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        records = [
            Record(f"{path}:{number}", {"question": line}) for number, line in lines if line.strip()
        ]
        file = RecordFile(path, records)
    placed = _QUESTION.read_file(file, lambda said, place: (place, said["question"]))
    check_unique(
        placed, "question", "remove one of the two", lambda text: plain_form(text).casefold()
    )
    return tuple(question for _, question in placed)


def _as_record(record: Record) -> Record:
    if isinstance(record.value, str):
        return Record(record.place, {"question": record.value})
    return record


def _find(source: str | Path, bundled: str) -> Path:
    return datasets_folder() / f"{bundled}.jsonl" if source == bundled else Path(source)
