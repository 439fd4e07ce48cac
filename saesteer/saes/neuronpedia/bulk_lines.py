"""The lines of a bulk file: read and checked one by one, stored file by file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saesteer.saes.neuronpedia.cache import Cache
from saesteer.saes.neuronpedia.links import SourceId
from saesteer.saes.neuronpedia.replies import FeatureFacts, named_faults
from saesteer.saes.neuronpedia.tables import tables
from saesteer.utils.errors import DataError
from saesteer.utils.http import parsed_json

# Explanations come with embeddings of some thousand characters.
LONGEST_LINE = 16_000_000
_FACTS = (
    "maxActApprox",
    "frac_nonzero",
    "pos_str",
    "pos_values",
    "neg_str",
    "neg_values",
)
_AT_ONCE = 2000


@dataclass(frozen=True)
class BulkLine:
    """One line of a bulk file.

    Attributes:
        number: Its number in the file, from 1.
        feature: The feature it speaks of.
        label: The explanation, its explainer and its kind; None where the line holds facts.
        facts: What else is known of the feature, in the API's own form.
    """

    number: int
    feature: int
    label: tuple[str, str | None, str | None] | None
    facts: dict[str, Any]


def read_lines(path: Path, name: str, source: SourceId) -> Iterator[BulkLine]:
    """Read a bulk file line by line.

    Args:
        path: The file; gzip is recognised by its content.
        name: What to call it in errors.
        source: The SAE that it must speak of.

    Raises:
        DataError: A line is not what it should be, or the file is cut off.
    """
    number = 0
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{name}:{number}: the line is longer than {LONGEST_LINE:,} bytes; this is "
                        "no file of labels."
                    )
                if line.strip():
                    yield _line(line, name, number, source)
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        raise DataError(
            f"{name}:{number + 1}: the file is cut off or damaged here ({error}); fetch it again."
        ) from error


def store_lines(
    cache: Cache, source: SourceId, name: str, digest: str, lines: Iterable[BulkLine]
) -> int:
    """Keep a file's lines, all or none, in place of what an older file of this name held.

    Args:
        cache: Where they go.
        source: The SAE.
        name: The file's name.
        digest: What tells its content.
        lines: Its lines.

    Returns:
        The number of lines.
    """
    from sqlalchemy.dialects.sqlite import insert

    kept, count, of = tables(), 0, str(source)
    # A clause of its own, so that a file's lines come in their order.
    start = f"{name}:"
    walk = iter(lines)
    with cache.connection(writes=True) as connection:
        words = kept.explanations
        older = (words.c.source == of) & words.c.place.between(start, f"{start}~")
        connection.execute(words.delete().where(older))
        while some := list(islice(walk, _AT_ONCE)):
            count += len(some)
            labels = [_label_row(of, start, line) for line in some if line.label is not None]
            facts = [_facts_row(of, line) for line in some if line.label is None]
            if labels:
                connection.execute(insert(words), labels)
            if facts:
                connection.execute(insert(kept.facts).prefix_with("OR REPLACE"), facts)
        row = {"source": of, "name": name, "digest": digest, "lines": count}
        connection.execute(insert(kept.files).prefix_with("OR REPLACE"), [row])
    return count


def _line(line: bytes, name: str, number: int, source: SourceId) -> BulkLine:
    where = f"{name}:{number}"
    found = parsed_json(line)
    if not isinstance(found, dict):
        raise DataError(f"{where}: the line is no JSON object; fetch the file again.")
    place = f"{found.get('modelId')}/{found.get('layer')}"
    if place != str(source):
        raise DataError(
            f"{where}: the line is of {place[:80]} and not of {source}; import the files of one "
            "SAE under its own name."
        )
    index = str(found.get("index", ""))
    if not (index.isascii() and index.isdigit() and len(index) < 10):
        raise DataError(f"{where}: index is {index[:40]!r}; it must be a whole number from 0.")
    if "description" in found:
        return BulkLine(number, int(index), _label(found, where), {})
    facts = {key: found[key] for key in _FACTS if found.get(key) is not None}
    if not facts:
        raise DataError(
            f"{where}: the line has neither a description nor {_FACTS[0]}; only files of "
            "explanations and of features can be imported."
        )
    try:
        FeatureFacts.model_validate(facts)
    except ValidationError as error:
        raise DataError(f"{where}: the line {named_faults(error)}; fetch the file again.") from None
    return BulkLine(number, int(index), None, facts)


def _label(found: dict[str, Any], where: str) -> tuple[str, str | None, str | None]:
    text = found["description"]
    if not isinstance(text, str):
        raise DataError(f"{where}: description is {str(text)[:40]!r}; it must be text.")
    rest = [found.get(key) for key in ("explanationModelName", "typeName")]
    explainer, kind = (value if isinstance(value, str) else None for value in rest)
    return text.strip(), explainer, kind


def _label_row(source: str, start: str, line: BulkLine) -> dict[str, Any]:
    assert line.label is not None
    description, explainer, kind = line.label
    return {
        "source": source,
        "feature": line.feature,
        "place": f"{start}{line.number:09d}",
        "description": description,
        "explainer": explainer,
        "kind": kind,
    }


def _facts_row(source: str, line: BulkLine) -> dict[str, Any]:
    body = zlib.compress(json.dumps(line.facts).encode())
    return {"source": source, "feature": line.feature, "body": body}
