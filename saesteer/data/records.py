"""From a file (JSON, JSONL, CSV or Parquet) to records that know their place in it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.utils.errors import DataError
from saesteer.utils.limits import (
    RECORDS_BYTES,
    check_bytes,
    check_depth,
    check_fields,
    read_bytes,
)
from saesteer.utils.text import one_line, shorten

SYNTAXES = ("json", "jsonl", "csv", "parquet")
SYNTAX_OF_SUFFIX = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Record:
    place: str  # `file:line`, and the record's number in a JSON list.
    value: Any = None  # A mapping when all is well.
    problem: str | None = None  # Why the record could not be read.

    def fields(self) -> Mapping[str, Any]:
        """Return the record's fields, or raise what is wrong with it."""
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

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        super().__init__(items)
        self.repeated: str | None = None
        if len(self) < len(items):
            self.repeated = first_repeated(name for name, _ in items)


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stood before; None where every name stands once."""
    seen: set[str] = set()
    # add() returns None, so that what is new is remembered and passed over.
    return next((name for name in names if name in seen or seen.add(name)), None)


def read_text(path: Path, *, fallback: str | None = None) -> str:
    """Read a whole UTF-8 text file, with or without a byte order mark, or one in `fallback`."""
    check_is_file(path)
    try:
        data = read_bytes(path, RECORDS_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); divide the file") from None
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
    """Refuse a path that is not a file."""
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
    suffix = SYNTAX_OF_SUFFIX.get(path.suffix.lower())
    wanted = syntax or suffix
    if wanted == "parquet":
        found = _read_parquet(path)
    else:
        text = read_text(path, fallback=fallback if wanted == "csv" else None)
        if wanted == "csv":
            found = _read_csv(path, text)
        elif syntax == "jsonl":
            found = RecordFile(path, list(_json_lines(path, text)))
        elif wanted is None and text.lstrip()[0] not in "[{":
            raise DataError(
                f"{path}: what kind of file this is cannot be told from its name; call it .json, "
                ".jsonl, .csv or .parquet, or say which with format="
            )
        else:
            lines = suffix == "jsonl" and syntax is None
            found = RecordFile(path, _read_json(path, text, strict=syntax == "json", lines=lines))
    if not found.records:
        raise DataError(f"{path}: the file holds no records; write at least one into it")
    return found


def _read_parquet(path: Path) -> RecordFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_is_file(path)
    rows: list[dict[str, Any]] = []
    size = 0
    try:
        # A few rows at a time: a small file may stand for endless ones.
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            _check_columns(path, names)
            for batch in file.iter_batches(batch_size=256):
                # A dictionary's word is short however often it stands there.
                size += sum(
                    (c.dictionary_decode() if pa.types.is_dictionary(c.type) else c).nbytes
                    for c in batch.columns
                )
                check_bytes(size, RECORDS_BYTES)
                rows += batch.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({one_line(error)}); write the file again"
        ) from None
    records = [Record(f"{path}: record {number}", row) for number, row in enumerate(rows, start=1)]
    return RecordFile(path, records, names)


def _check_columns(path: Path, names: tuple[str, ...]) -> None:
    try:
        check_fields(names, "columns")
    except ValueError as error:
        raise DataError(f"{path}:1: the table cannot be read ({error}); mend it") from None


def _fault(error: ValueError | RecursionError) -> str:
    """Return why a text is no JSON."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error).split(";")[0]


def _read_json(path: Path, text: str, *, strict: bool, lines: bool) -> list[Record]:
    try:
        whole = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        follows = getattr(error, "msg", "") == "Extra data" and text.lstrip()[0] == "{"
        if lines or (follows and not strict):
            return list(_json_lines(path, text))
        raise DataError(
            f"{path}:{getattr(error, 'lineno', 1)}: this is not valid JSON ({_fault(error)}); "
            "mend the file there"
        ) from None
    start = _skip(text, 0)
    if isinstance(whole, dict) and "pairs" in whole:
        if not isinstance(whole["pairs"], list):
            raise DataError(
                f"{path}: the field 'pairs' is {shorten(whole['pairs'])}, not a list; "
                "write it as [{...}, {...}]"
            )
        start = {key: at for key, at, _ in _walk(text, start)}["pairs"]
    elif not isinstance(whole, list):
        return [_record(f"{path}:{text.count(chr(10), 0, start) + 1}", whole)]
    records, line, counted = [], 1, 0
    if isinstance(whole, dict) and "describe" in whole:
        # As a file of JSON lines has it: before the pairs.
        records.append(_record(f"{path}: describe", {"describe": whole["describe"]}))
    for number, (_, at, value) in enumerate(_walk(text, start), start=1):
        line += text.count("\n", counted, at)
        counted = at
        records.append(_record(f"{path}:{line}: record {number}", value))
    return records


def _walk(text: str, at: int) -> Iterator[tuple[str | None, int, Any]]:
    """Yield key, place and value of each item of the valid JSON list or object at a place."""
    decoder = json.JSONDecoder(object_pairs_hook=_Object)
    closing = "]" if text[at] == "[" else "}"
    at = _skip(text, at + 1)
    while text[at] != closing:
        key = None
        if closing == "}":
            key, at = decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        value, end = decoder.raw_decode(text, at)
        yield key, at, value
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    # Not splitlines(): JSON strings may hold U+2028 and the like, which end no line here.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield json_line(f"{path}:{number}", line)


def json_line(place: str, line: str) -> Record:
    """Return the record that a line of JSON holds, or what is wrong with it."""
    try:
        return _record(place, json.loads(line, object_pairs_hook=_Object))
    except (ValueError, RecursionError) as error:
        fault = f"this line is not valid JSON ({_fault(error)}); mend or remove the line"
        return Record(place, problem=fault)


def _record(place: str, value: Any) -> Record:
    if not isinstance(value, _Object):
        return Record(place, value)
    fault = None
    if value.repeated is not None:
        fault = f"the field {shorten(value.repeated)} is given twice; remove one of them"
    try:
        check_fields(value, "fields")
        check_depth(value)
    except ValueError as error:
        return Record(place, problem=f"the record cannot be read ({error}); mend it")
    return Record(place, value, fault)


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
                header = tuple(cell.strip() for cell in row)
                twice = first_repeated(header)
                if twice is not None:
                    raise DataError(
                        f"{place}: the column {shorten(twice)} is given twice; remove one of them"
                    )
                _check_columns(path, header)
            elif len(row) == len(header):
                records.append(Record(place, dict(zip(header, row, strict=True))))
            else:
                fault = (
                    f"the row has {len(row)} fields and the header {len(header)}; put texts that "
                    "hold commas in double quotes"
                )
                records.append(Record(place, problem=fault))
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
