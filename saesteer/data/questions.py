"""Reading questions to generate answers for."""

from __future__ import annotations

from pathlib import Path

from saesteer.data.bundled import QUESTIONS_NAME, bundled_questions_file
from saesteer.data.checks import (
    check_known_fields,
    check_text,
    collect,
    is_blank,
    optional_text,
    plain_form,
    required_text,
    shorten,
)
from saesteer.data.records import Record, read_records, read_text
from saesteer.utils.errors import DataError

FIELDS = ("question", "id")
_RECORD_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv")


def read_questions(source: str | Path) -> tuple[str, ...]:
    """Read questions and check every one of them.

    Args:
        source: Path of a JSONL or CSV file with the fields question and (optional) id, of a JSON
            list of such records or of strings, or of a plain text file with one question a line;
            or "neutral_questions", the bundled ones.

    Returns:
        The questions, in the order of the file.

    Raises:
        DataError: The source cannot be used; the sentence names file and line.
    """
    path = bundled_questions_file() if source == QUESTIONS_NAME else Path(source)
    if path.suffix.lower() in _RECORD_SUFFIXES or read_text(path).lstrip()[0] in "[{":
        records = read_records(path).records
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        records = [Record(f"{path}:{number}", line) for number, line in lines if line.strip()]
    first_place: dict[str, str] = {}

    def parse(record: Record) -> str:
        question = _question(record)
        earlier = first_place.setdefault(plain_form(question).casefold(), record.place)
        if earlier != record.place:
            raise DataError(
                f"{record.place}: the question {shorten(question)} stands at {earlier} already; "
                "remove one of the two"
            )
        return question

    return tuple(collect(records, parse))


def _question(record: Record) -> str:
    if record.problem is None and isinstance(record.value, str):
        check_text(record.value, "the question", record.place)
        if is_blank(record.value):
            raise DataError(f"{record.place}: the question is blank; write it or remove the entry")
        return record.value.strip()
    fields = record.fields()
    check_known_fields([str(field) for field in fields], FIELDS, record.place)
    if not isinstance(fields.get("id"), int):
        optional_text(fields, "id", record.place)
    return required_text(fields, "question", record.place)
