"""Importing bulk files of labels: from the public bucket or from disk, checked line by line."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from saesteer.saes.neuronpedia.bulk_lines import read_lines, store_lines
from saesteer.saes.neuronpedia.cache import Cache
from saesteer.saes.neuronpedia.links import SourceId
from saesteer.saes.neuronpedia.transport import Transport
from saesteer.utils.errors import DataError, NetworkError, OutputError
from saesteer.utils.progress import Progress

KINDS = ("explanations", "features")
_VERSION = "v1"
_SUFFIXES = (".jsonl", ".jsonl.gz")
_MOST_PAGES = 1000


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        files: Files that were imported.
        skipped: Files that had been imported before.
        lines: Lines that were read.
        labels: Features of the SAE that have a label now.
    """

    files: int
    skipped: int
    lines: int
    labels: int


@dataclass(frozen=True)
class _Bulk:
    """A bulk file: what to call it, what tells its content, its size and how to open it."""

    name: str
    digest: str
    size: int
    opened: Callable[[], Path]


def import_from_bucket(
    cache: Cache,
    transport: Transport,
    source: SourceId,
    *,
    kinds: Sequence[str] = ("explanations",),
    progress: Progress | None = None,
) -> Imported:
    """Import an SAE's labels from the public bucket; files that are in already are not fetched.

    Args:
        cache: Where they go.
        transport: Asks the bucket.
        source: The SAE.
        kinds: "explanations" (labels) and "features" (maximum activation, density, logits).
        progress: Where to show progress.

    Raises:
        NetworkError: The bucket is away or holds nothing of this SAE.
        DataError: A line is not what it should be, with file and line.
        OutputError: The cache cannot be written.
    """
    listed = [(kind, *entry) for kind in kinds for entry in _listed(transport, source, kind)]
    if not listed:
        raise NetworkError(
            f"{transport.service.bucket_url} holds no {' or '.join(kinds)} of {source}; check the "
            "names of model and source, which are those of the SAE's neuronpedia_id."
        )
    with tempfile.TemporaryDirectory(prefix="neuronpedia-") as folder:
        draft = Path(folder) / "bulk.jsonl.gz"

        def fetched(key: str) -> Path:
            with draft.open("w+b") as file:
                transport.fetch(f"{transport.service.bucket_url}/{quote(key)}", file)
            return draft

        bulk = [
            _Bulk(f"{kind}/{Path(key).name}", digest, size, lambda key=key: fetched(key))
            for kind, key, digest, size in listed
        ]
        return _import_all(cache, source, bulk, progress or Progress())


def import_from_files(
    cache: Cache,
    source: SourceId,
    paths: Sequence[str | os.PathLike[str]],
    *,
    progress: Progress | None = None,
) -> Imported:
    """Import an SAE's labels from files of the bucket's form.

    Args:
        cache: Where they go.
        source: The SAE.
        paths: .jsonl or .jsonl.gz files, or folders whose files of these kinds are all taken.
        progress: Where to show progress.

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
    if not found:
        raise DataError(f"no files of {source} were given; give .jsonl(.gz) files or a folder.")
    bulk = [
        _Bulk(f"local/{path.name}", _digest(path), path.stat().st_size, lambda path=path: path)
        for path in sorted(found, key=_natural)
    ]
    return _import_all(cache, source, bulk, progress or Progress())


def _import_all(
    cache: Cache, source: SourceId, bulk: Sequence[_Bulk], progress: Progress
) -> Imported:
    known = cache.imported(str(source))["files"]
    fresh = [one for one in bulk if known.get(one.name) != one.digest]
    lines = 0
    megabytes = sum(one.size for one in fresh) / 1e6
    with progress.task(f"importing {source}", total=megabytes, unit="MB") as task:
        for number, one in enumerate(fresh, start=1):
            # File by file in one transaction each: an import that is cut off goes on from here.
            rows = read_lines(one.opened(), one.name, source)
            lines += store_lines(cache, source, one.name, one.digest, rows)
            task.advance(one.size / 1e6, f"{number}/{len(fresh)} files")
    labels = cache.imported(str(source))["labels"]
    return Imported(len(fresh), len(bulk) - len(fresh), lines, labels)


def _listed(transport: Transport, source: SourceId, kind: str) -> list[tuple[str, str, int]]:
    """Return key, digest and size of an SAE's bulk files, batch by batch."""
    # The slash at the end keeps 6-res apart from 6-res-jb.
    prefix = f"{_VERSION}/{source}/{kind}/"
    found: list[tuple[str, str, int]] = []
    token = ""
    for _ in range(_MOST_PAGES):
        params = {"list-type": "2", "prefix": prefix}
        params |= {"continuation-token": token} if token else {}
        body = transport.text(f"{transport.service.bucket_url}/", params)
        token = _read_listing(body, transport.service.bucket_url, found)
        if not token:
            break
    wanted = [entry for entry in found if entry[0].startswith(prefix)]
    wanted = [entry for entry in wanted if entry[0].endswith(_SUFFIXES)]
    return sorted(wanted, key=lambda entry: _natural(Path(entry[0])))


def _read_listing(body: bytes, where: str, found: list[tuple[str, str, int]]) -> str:
    """Add a listing's entries to `found`; return what asks for the next page, "" at the end."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(body)
        texts = [
            {child.tag.rpartition("}")[2]: child.text or "" for child in entry}
            for entry in root
            if entry.tag.endswith("Contents")
        ]
        found += [(one["Key"], one.get("ETag", ""), int(one.get("Size") or 0)) for one in texts]
        top = {child.tag.rpartition("}")[2]: child.text or "" for child in root}
    except (ElementTree.ParseError, KeyError, ValueError):
        root = None
    if root is None or not root.tag.endswith("ListBucketResult"):
        raise NetworkError(
            f"{where} answers with something else than a bucket's listing; check the address "
            "(NEURONPEDIA_BUCKET_URL)."
        )
    more = top.get("IsTruncated") == "true"
    return top.get("NextContinuationToken", "") if more else ""


def _natural(path: Path) -> tuple[object, ...]:
    parts = re.split(r"(\d+)", path.name)
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for piece in _pieces(file):
                digest.update(piece)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return digest.hexdigest()


def _pieces(file: object) -> Iterator[bytes]:
    while piece := file.read(1 << 20):  # type: ignore[attr-defined]
        yield piece
