"""Importing bulk files of labels: from the public bucket or from disk, checked line by line."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pydantic import Field, ValidationError

from saesteer.data.texts import numbered_lines
from saesteer.saes.neuronpedia.cache import BulkLine, Cache
from saesteer.saes.neuronpedia.links import SourceId
from saesteer.saes.neuronpedia.replies import Explanation, FeatureFacts, named_faults
from saesteer.saes.neuronpedia.service import Service
from saesteer.utils.errors import DataError, NetworkError, OutputError
from saesteer.utils.http import parsed_json
from saesteer.utils.progress import Progress

_FACTS = tuple(str(field.alias) for field in FeatureFacts.model_fields.values())
_VERSION = "v1"
_SUFFIXES = (".jsonl", ".jsonl.gz")
_MOST_PAGES = 1000


class Imported(NamedTuple):
    files: int  # Files that were imported.
    skipped: int  # Files that had been imported before.
    lines: int
    labels: int  # Features of the SAE that have a label now.


class _Bulk(NamedTuple):
    """A bulk file: what to call it, what tells its content, its size and what opens it."""

    name: str
    digest: str
    size: int
    opened: Callable[[], Path]


class _Line(Explanation, FeatureFacts):
    # Explained or with facts; null is no text.
    description: str = ""
    index: int = Field(ge=0, lt=10**9)


def import_from_bucket(
    cache: Cache,
    service: Service,
    source: SourceId,
    *,
    kinds: Sequence[str] = ("explanations",),
    progress: Progress | None = None,
) -> Imported:
    """Import an SAE's labels from the public bucket; files that are in already are not fetched.

    `kinds` are "explanations" (labels) and "features" (maximum activation, density, logits).

    Raises:
        NetworkError: The bucket is away or holds nothing of this SAE.
        DataError: A line is not what it should be, with file and line.
        OutputError: The cache cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="neuronpedia-") as folder:
        draft = Path(folder) / "bulk"

        def fetched(key: str) -> Path:
            with draft.open("w+b") as file:
                service.fetch(quote(key), file)
            return draft

        bulk = [
            _Bulk(f"{kind}/{Path(key).name}", digest, size, partial(fetched, key))
            for kind in kinds
            for key, digest, size in _listed(service, source, kind)
        ]
        if not bulk:
            raise NetworkError(
                f"{service.bucket_url} holds no {' or '.join(kinds)} of {source}; check the "
                "names of model and source, which are those of the SAE's neuronpedia_id."
            )
        return _import_all(cache, source, bulk, progress or Progress())


def import_from_files(
    cache: Cache,
    source: SourceId,
    paths: Sequence[str | os.PathLike[str]],
    *,
    progress: Progress | None = None,
) -> Imported:
    """Import an SAE's labels from .jsonl(.gz) files of the bucket's form, or folders of them.

    Raises:
        DataError: There is no such file, or a line is not what it should be.
        OutputError: The cache cannot be written.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())
        if not (inside or path.is_file()):
            raise DataError(f"{path}: there is no such file, nor a folder with .jsonl(.gz) files.")
        found += inside or [path]
    bulk = [
        _Bulk(f"local/{path.name}", _digest(path), path.stat().st_size, lambda path=path: path)
        for path in sorted(found, key=_natural)
    ]
    return _import_all(cache, source, bulk, progress or Progress())


def _import_all(
    cache: Cache, source: SourceId, bulk: Sequence[_Bulk], progress: Progress
) -> Imported:
    known = cache.files(str(source))
    fresh = [one for one in bulk if known.get(one.name) != one.digest]
    lines = 0
    megabytes = sum(one.size for one in fresh) / 1e6
    with progress.task(f"importing {source}", total=megabytes, unit="MB") as task:
        for number, one in enumerate(fresh, start=1):
            # File by file in one transaction each: an import that is cut off goes on from here.
            rows = _read_lines(one.opened(), one.name, source)
            lines += cache.store_file(str(source), one.name, one.digest, rows)
            task.advance(one.size / 1e6, f"{number}/{len(fresh)} files")
    labels = len(cache.labels(str(source)))
    return Imported(len(fresh), len(bulk) - len(fresh), lines, labels)


def _listed(service: Service, source: SourceId, kind: str) -> list[tuple[str, str, int]]:
    """Return key, digest and size of an SAE's bulk files, batch by batch."""
    # The slash at the end keeps 6-res apart from 6-res-jb.
    prefix = f"{_VERSION}/{source}/{kind}/"
    params = {"list-type": "2", "prefix": prefix}
    found: list[tuple[str, str, int]] = []
    for _ in range(_MOST_PAGES):
        page, token = _read_listing(service.listing(params), service.bucket_url)
        found += page
        if not token:
            break
        params["continuation-token"] = token
    wanted = [e for e in found if e[0].startswith(prefix) and e[0].endswith(_SUFFIXES)]
    return sorted(wanted, key=lambda entry: _natural(Path(entry[0])))


def _read_listing(body: bytes, where: str) -> tuple[list[tuple[str, str, int]], str]:
    """Return a listing's entries, and what asks for the next page, "" at the end."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(body)
        if not root.tag.endswith("ListBucketResult"):
            raise ValueError(root.tag)
        found = [
            (
                entry.findtext("{*}Key", ""),
                entry.findtext("{*}ETag", ""),
                int(entry.findtext("{*}Size") or 0),
            )
            for entry in root.iterfind("{*}Contents")
        ]
    except (ElementTree.ParseError, ValueError):
        raise NetworkError(
            f"{where} answers with something else than a bucket's listing; check the address "
            "(NEURONPEDIA_BUCKET_URL)."
        ) from None
    is_cut = root.findtext("{*}IsTruncated") == "true"
    return found, root.findtext("{*}NextContinuationToken", "") if is_cut else ""


def _natural(path: Path) -> tuple[object, ...]:
    parts = re.split(r"(\d+)", path.name)
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _read_lines(path: Path, name: str, source: SourceId) -> Iterator[BulkLine]:
    for number, line in numbered_lines(path, called=name):
        if line.strip():
            yield _read_line(line, f"{name}:{number}", number, source)


def _read_line(line: bytes, where: str, number: int, source: SourceId) -> BulkLine:
    found = parsed_json(line)
    if not isinstance(found, dict):
        raise DataError(f"{where}: the line is no JSON object; fetch the file again.")
    place = f"{found.get('modelId')}/{found.get('layer')}"
    if place != str(source):
        raise DataError(
            f"{where}: the line is of {place[:80]} and not of {source}; import the files of one "
            "SAE under its own name."
        )
    facts = {key: found[key] for key in _FACTS if found.get(key) is not None}
    if "description" not in found and not facts:
        raise DataError(
            f"{where}: the line has neither a description nor {_FACTS[0]}; only files of "
            "explanations and of features can be imported."
        )
    try:
        read = _Line.model_validate(found)
    except ValidationError as error:
        raise DataError(f"{where}: the line {named_faults(error)}; fetch the file again.") from None
    if "description" in found:
        return BulkLine(number, read.index, (read.description.strip(), read.explainer, read.kind))
    return BulkLine(number, read.index, facts=facts)
