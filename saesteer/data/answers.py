"""Reading neutral questions with answers: the text on which steering's cost is measured."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from saesteer.data.bundled import datasets_folder
from saesteer.data.checks import check_known_fields, collect, optional_text, required_text
from saesteer.data.records import Record, read_records

ANSWERS_NAME = "neutral_answers"
FIELDS = ("question", "answer", "id")


class Answer(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def read_answers(source: str | Path) -> tuple[Answer, ...]:
    """Read questions with answers.

    Args:
        source: Path of a JSONL, JSON or CSV file with the fields question, answer and (optional)
            id; or "neutral_answers", the bundled ones.

    Returns:
        The answers, in the order of the file.

    Raises:
        DataError: The source cannot be used; the sentence names file and line.
    """
    bundled = source == ANSWERS_NAME
    path = datasets_folder() / f"{ANSWERS_NAME}.jsonl" if bundled else Path(source)
    return tuple(collect(read_records(path).records, _answer))


def _answer(record: Record) -> Answer:
    fields = record.fields()
    check_known_fields([str(field) for field in fields], FIELDS, record.place)
    if not isinstance(fields.get("id"), int):
        optional_text(fields, "id", record.place)
    return Answer(
        required_text(fields, "question", record.place),
        required_text(fields, "answer", record.place),
    )
