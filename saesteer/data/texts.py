"""Streaming plain texts, such as those an SAE is trained on."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from saesteer.data.checks import is_blank, near_field, shorten
from saesteer.data.records import check_is_file
from saesteer.utils.errors import ConfigError, DataError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
MAX_BYTES = 64 * 1024 * 1024


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
    texts = _json_texts(path) if is_json else _paragraphs(path)
    return islice(_at_least_one(path, texts), limit)


def _at_least_one(path: Path, texts: Iterator[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        raise DataError(f"{path}: the file holds no text; write at least one into it")


def _json_texts(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place}: this line is not valid JSON ({str(error).split(';')[0]}); "
                "mend or remove the line"
            ) from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            hint = near_field("text", record) if isinstance(record, dict) else ""
            raise DataError(
                f"{place}: the line is {shorten(line.strip())} and has no text in a field "
                f'"text"{hint}; write it as {{"text": "..."}}'
            )
        if not is_blank(record["text"]):
            yield record["text"]


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for number, line in _lines(path):
        if line.strip():
            lines.append(line.rstrip())
            size += len(line)
            _check_size(size, path, number, "paragraph", "separate paragraphs by blank lines")
        elif lines:
            yield "\n".join(lines)
            lines, size = [], 0
    if lines:
        yield "\n".join(lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decode line by line, so that a bad byte is reported where it stands."""
    number = 0
    try:
        with _open(path) as file:
            # A bounded readline(): a file without line ends must not be read as a whole.
            while raw := file.readline(MAX_BYTES + 1):
                number += 1
                _check_size(len(raw), path, number, "line", "split it")
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}:{number}: the file is not UTF-8; save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}:{number + 1}: the gzip file is damaged or cut off here ({error}); "
            "fetch or write it again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # pyright: ignore[reportReturnType]
    return path.open("rb")


def _check_size(size: int, path: Path, number: int, what: str, way_out: str) -> None:
    if size > MAX_BYTES:
        raise DataError(
            f"{path}:{number}: this {what} has more than {MAX_BYTES // 2**20} MiB; {way_out}"
        )
