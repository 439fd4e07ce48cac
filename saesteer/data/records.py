"""From a file (JSON, JSONL, CSV or Parquet) to records that know their place in it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.utils.errors import DataError
from saesteer.utils.text import one_line, shorten

SYNTAXES = ("json", "jsonl", "csv", "parquet")
_SYNTAX_OF_SUFFIX = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    place: str  # `file:line`, and the record's number in a JSON list.
    value: Any = None  # A mapping when all is well.
    problem: str | None = None  # Why the record could not be read.

    def fields(self) -> Mapping[str, Any]:
        """The record's fields.

        Raises:
            DataError: The record could not be read or is not an object.
        """
        if self.problem is not None:
            raise DataError(f"{self.place}: {self.problem}")
        if not isinstance(self.value, Mapping):
            raise DataError(
                f"{self.place}: the record is {shorten(self.value)}, not an object with fields; "
                'write it as {"field": "text"}'
            )
        return self.value


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The records of a file, the unreadable ones among them with their problem."""

    path: Path
    records: list[Record]
    header: tuple[str, ...] | None = None  # The columns of a CSV or Parquet file.


class _Object(dict[str, Any]):
    """A JSON object that remembers a field given twice, which a plain dict would hide."""

    repeated: str | None = None


class _BadJson(Exception):
    def __init__(self, reason: str, line: int = 1, more_follows: bool = False) -> None:
        super().__init__(reason)
        self.line = line
        self.more_follows = more_follows


def read_text(path: Path, *, fallback: str | None = None) -> str:
    """Read a whole UTF-8 text file, with or without a byte order mark.

    Args:
        path: The file.
        fallback: The encoding of a file that is not UTF-8; refused if None.

    Raises:
        DataError: The path is no readable file, the file is empty or in another encoding.
    """
    check_is_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback is None:
            line = data.count(b"\n", 0, error.start) + 1
            raise DataError(f"{path}:{line}: the file is not UTF-8; save it as UTF-8") from None
        text = data.decode(fallback)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path}:{line}: the file holds a zero byte, so it is not UTF-8 text; save it as UTF-8"
        )
    if not text.strip():
        raise DataError(f"{path}: the file is empty; write at least one record into it")
    return text


def check_is_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        DataError: There is nothing at the path, or a folder.
    """
    shown = str(path) if len(str(path)) <= 200 else shorten(str(path))
    try:
        if path.is_file():
            return
        if path.is_dir():
            raise DataError(f"{shown}: this is a folder; give the path of a file in it")
    except OSError as error:
        raise DataError(
            f"{shown}: cannot be opened ({error.strerror}); give the path of a file"
        ) from None
    raise DataError(f"{shown}: there is no such file; check the path")


def read_records(
    path: Path, syntax: str | None = None, *, fallback: str | None = None
) -> RecordFile:
    """Read a file of records.

    JSON and JSONL are told apart by their content, CSV and Parquet by the file's suffix.

    Args:
        path: The file.
        syntax: One of `SYNTAXES` to insist on it, None to find out.
        fallback: The encoding of a CSV file that is not UTF-8; refused if None.

    Raises:
        DataError: The file as a whole cannot be used.
    """
    suffix = _SYNTAX_OF_SUFFIX.get(path.suffix.lower())
    wanted = syntax or suffix
    if wanted == "parquet":
        found = _read_parquet(path)
    else:
        found = _read_text_records(path, syntax, suffix, fallback)
    if not found.records:
        raise DataError(f"{path}: the file holds no records; write at least one into it")
    return found


def _read_text_records(
    path: Path, syntax: str | None, suffix: str | None, fallback: str | None
) -> RecordFile:
    wanted = syntax or suffix
    text = read_text(path, fallback=fallback if wanted == "csv" else None)
    if wanted == "csv":
        return _read_csv(path, text)
    if syntax == "jsonl":
        return RecordFile(path, list(_json_lines(path, text)))
    if wanted is not None or text.lstrip()[0] in "[{":
        return RecordFile(path, _read_json(path, text, strict=syntax == "json", suffix=suffix))
    raise DataError(
        f"{path}: what kind of file this is cannot be told from its name; call it .json, "
        ".jsonl, .csv or .parquet, or say which with format="
    )


def _read_parquet(path: Path) -> RecordFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_is_file(path)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({one_line(error)}); write the file again"
        ) from None
    rows = enumerate(table.to_pylist(), start=1)
    records = [Record(f"{path}: record {number}", row) for number, row in rows]
    return RecordFile(path, records, tuple(table.column_names))


def _read_json(path: Path, text: str, *, strict: bool, suffix: str | None) -> list[Record]:
    try:
        whole = _loads(text)
    except _BadJson as error:
        several_objects = error.more_follows and text.lstrip()[0] == "{"
        if not strict and (several_objects or suffix == "jsonl"):
            return list(_json_lines(path, text))
        raise DataError(
            f"{path}:{error.line}: this is not valid JSON ({error}); mend the file there"
        ) from None
    start = _SPACE.match(text).end()  # pyright: ignore[reportOptionalMemberAccess]
    if isinstance(whole, list):
        return list(_json_list(path, text, start))
    if isinstance(whole, dict) and "pairs" in whole:
        if not isinstance(whole["pairs"], list):
            raise DataError(
                f"{path}: the field 'pairs' is {shorten(whole['pairs'])}, not a list; "
                "write it as [{...}, {...}]"
            )
        return list(_json_list(path, text, _value_start(text, start, "pairs")))
    return [_record(f"{path}:{text.count(chr(10), 0, start) + 1}", whole)]


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    # Not splitlines(): JSON strings may hold U+2028 and the like, which end no line here.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield _record(place, _loads(line))
        except _BadJson as error:
            yield Record(
                place, problem=f"this line is not valid JSON ({error}); mend or remove the line"
            )


def _json_list(path: Path, text: str, start: int) -> Iterator[Record]:
    """Walk over a list in valid JSON item by item, since only so the lines are known."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    line, counted, number = 1, 0, 0
    position = _skip(text, start + 1)
    while text[position] != "]":
        number += 1
        line += text.count("\n", counted, position)
        counted = position
        value, end = decoder.raw_decode(text, position)
        yield _record(f"{path}:{line}: record {number}", value)
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _value_start(text: str, start: int, key: str) -> int:
    """Where the value of `key` starts in the valid JSON object that starts at `start`."""
    decoder = json.JSONDecoder()
    position = _skip(text, start + 1)
    found = -1
    while text[position] != "}":
        name, end = decoder.raw_decode(text, position)
        value_at = _skip(text, _skip(text, end) + 1)
        if name == key:
            found = value_at
        _, end = decoder.raw_decode(text, value_at)
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return found


def _skip(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]


def _record(place: str, value: Any) -> Record:
    if isinstance(value, _Object) and value.repeated is not None:
        return Record(
            place, problem=f"the field '{value.repeated}' is given twice; remove one of them"
        )
    return Record(place, value)


def _object(items: list[tuple[str, Any]]) -> _Object:
    found = _Object(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        found.repeated = next(name for name in names if names.count(name) > 1)
    return found


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise _BadJson(reason, error.lineno, error.msg == "Extra data") from None
    except RecursionError:
        raise _BadJson("it is nested too deeply") from None
    except ValueError as error:
        raise _BadJson(str(error).split(";")[0]) from None


def _read_csv(path: Path, text: str) -> RecordFile:
    header: tuple[str, ...] | None = None
    records: list[Record] = []
    line = 1
    try:
        for end, row in _csv_rows(text):
            place, line = f"{path}:{line}", end + 1
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = _csv_header(place, row)
            elif len(row) != len(header):
                records.append(
                    Record(
                        place,
                        problem=f"the row has {len(row)} fields and the header {len(header)}; "
                        "put texts that hold commas in double quotes",
                    )
                )
            else:
                records.append(Record(place, dict(zip(header, row, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: this is not valid CSV from here on ({error}); "
            'put texts in double quotes and write a quote inside them as ""'
        ) from None
    return RecordFile(path, records, header)


def _csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Give each row with the line that it ends on, however long its cells are."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    # The limit is the process's, so it is lifted for one row at a time.
    while True:
        limit = csv.field_size_limit(len(text))
        try:
            row = next(reader)
        except StopIteration:
            return
        finally:
            csv.field_size_limit(limit)
        yield reader.line_num, row


def _csv_header(place: str, row: list[str]) -> tuple[str, ...]:
    header = tuple(cell.strip() for cell in row)
    for cell in header:
        if header.count(cell) > 1:
            raise DataError(f"{place}: the column '{cell}' is given twice; remove one of them")
    return header
