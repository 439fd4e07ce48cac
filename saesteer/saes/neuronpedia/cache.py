"""What Neuronpedia answered, in one SQLite file: answers by what was asked, labels by feature."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from saesteer.utils.cache import cache_folder
from saesteer.utils.errors import OutputError
from saesteer.utils.text import one_line

VERSION = 1
# `replies` are answers by the hash of what was asked; `explanations` imported labels, of which
# `place` orders those of one feature; `facts` what else was imported; `files` what is in whole.
_TABLES = (
    "replies (key VARCHAR PRIMARY KEY, body BLOB NOT NULL, fetched FLOAT NOT NULL)",
    "explanations (source VARCHAR, feature INTEGER, place VARCHAR, description VARCHAR NOT NULL, "
    "explainer VARCHAR, kind VARCHAR, PRIMARY KEY (source, feature, place)) WITHOUT ROWID",
    "facts (source VARCHAR, feature INTEGER, body BLOB NOT NULL, PRIMARY KEY (source, feature)) "
    "WITHOUT ROWID",
    "files (source VARCHAR, name VARCHAR, digest VARCHAR NOT NULL, lines INTEGER NOT NULL, "
    "PRIMARY KEY (source, name))",
)


def label_cache() -> Path:
    """Return the file where Neuronpedia's answers and imported labels are kept."""
    return cache_folder() / "neuronpedia.sqlite"


class BulkLine(NamedTuple):
    """One line of a bulk file: a label or, where that is None, what else is known of a feature."""

    number: int  # Its number in the file, from 1.
    feature: int
    # The explanation, its explainer, its kind.
    label: tuple[str, str | None, str | None] | None = None
    facts: Mapping[str, Any] = {}  # In the API's own form.


class Cache:
    """Answers and labels, safe for several processes at once.

    Everything raises `OutputError` where the file cannot be read or written. SAEs are named by
    model and source, such as "gpt2-small/6-res-jb".

    Args:
        path: The SQLite file, made with its folder when something is first kept.
        now: What tells the time, seconds.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, now: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self._now = now

    def get(self, keys: Sequence[str], max_age: float | None = None) -> dict[str, Any]:
        """Return the JSON kept under keys, but for what is older than `max_age` seconds.

        None stands for what the service said that there is not.
        """
        oldest = -math.inf if max_age is None else self._now() - max_age
        # One value, since a statement takes a limited number of them.
        wanted = "SELECT value FROM json_each(?)"
        query = f"SELECT key, body FROM replies WHERE key IN ({wanted}) AND fetched >= ?"
        rows = self._read(query, json.dumps(list(keys)), oldest)
        return {key: self._unpacked(body) for key, body in rows}

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep several answers at once; None for "there is no such thing"."""
        if not values:
            return
        rows = [(key, _packed(value), self._now()) for key, value in values.items()]
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", rows)

    def labels(self, source: str) -> dict[int, str]:
        """Return all imported labels of an SAE, by feature."""
        return {feature: words for feature, (words, _) in self.explanations(source).items()}

    def explanations(self, source: str) -> dict[int, tuple[str, str]]:
        """Return all labels of an SAE with who they are by, by feature."""
        # Of several explanations the first stays, which comes last here.
        query = (
            "SELECT feature, description, COALESCE(explainer, '') AS explainer FROM explanations "
            "WHERE source = ? AND description != '' ORDER BY feature, place DESC"
        )
        return {feature: (words, by) for feature, words, by in self._read(query, source)}

    def files(self, source: str) -> dict[str, str]:
        """Return the digest of each file that is imported of an SAE, by its name."""
        return dict(self._read("SELECT name, digest FROM files WHERE source = ?", source))

    def feature(self, source: str, index: int) -> dict[str, Any] | None:
        """Return what imported files say of one feature, in the API's own form, if anything."""
        where = "WHERE source = ? AND feature = ?"
        listed = self._read(
            "SELECT description, explainer AS explanationModelName, kind AS typeName "
            f"FROM explanations {where} ORDER BY place",
            *(source, index),
        )
        known = self._read(f"SELECT body FROM facts {where}", source, index)
        if not (listed or known):
            return None
        model, _, layer = source.partition("/")
        return {
            **(self._unpacked(known[0]["body"]) if known else {}),
            "modelId": model,
            "layer": layer,
            "index": str(index),
            "explanations": [dict(row) for row in listed],
            "activations": [],
        }

    def store_file(self, source: str, name: str, digest: str, lines: Iterable[BulkLine]) -> int:
        """Keep a bulk file's lines, all or none, in place of what an older file of its name held.

        Returns:
            The number of lines.
        """
        count, walk = 0, iter(lines)
        # A clause of its own, so that a file's lines come in their order.
        start = f"{name}:"
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM explanations WHERE source = ? AND place BETWEEN ? AND ?",
                (source, start, f"{start}~"),
            )
            while some := list(islice(walk, 2000)):
                count += len(some)
                labels = [
                    (source, line.feature, f"{start}{line.number:09d}", *line.label)
                    for line in some
                    if line.label
                ]
                facts = [(source, one.feature, _packed(one.facts)) for one in some if not one.label]
                connection.executemany("INSERT INTO explanations VALUES (?, ?, ?, ?, ?, ?)", labels)
                connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", facts)
            connection.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (source, name, digest, count)
            )
        return count

    def _read(self, query: str, *values: Any) -> list[Any]:
        if not self.path.is_file():
            return []
        with self._opened() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction, which is rolled back if the block raises; writers wait in line."""
        with self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            # What is not committed when it is closed is rolled back.
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connected()) as connection:
                connection.row_factory = sqlite3.Row
                if not self._is_shared():
                    self._prepare(connection)
                yield connection
                return
        except (sqlite3.Error, OSError) as error:
            said = one_line(error, 120)
        raise OutputError(
            f"Neuronpedia's cache {self.path} cannot be used ({said}); free some space, delete the "
            "file, or set SAESTEER_CACHE to another folder."
        )

    def _is_shared(self) -> bool:
        """Whether the file can only be read, such as labels that somebody shares."""
        places = (self.path, self.path.parent)
        return self.path.is_file() and not all(os.access(place, os.W_OK) for place in places)

    def _connected(self) -> sqlite3.Connection:
        if self._is_shared():
            # Without a journal beside them nobody writes them, and one cannot be made.
            journal = self.path.with_name(f"{self.path.name}-wal")
            how = "mode=ro" if journal.is_file() else "mode=ro&immutable=1"
            return sqlite3.connect(f"file:{quote(str(self.path))}?{how}", uri=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The driver's own transactions start late, at the first write.
        return sqlite3.connect(self.path, timeout=60, isolation_level=None)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Readers and a writer do not wait for each other; what is lost with the power is only
        # asked again.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, VERSION):
            raise OSError(f"it is of version {found} and this saesteer keeps {VERSION}")
        if found == 0:
            connection.execute("BEGIN IMMEDIATE")
            for table in _TABLES:
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("COMMIT")

    def _unpacked(self, body: bytes) -> Any:
        try:
            return json.loads(zlib.decompress(body))
        except (zlib.error, ValueError) as error:
            raise OutputError(
                f"Neuronpedia's cache {self.path} holds a damaged entry ({error}); delete the file."
            ) from None


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode())
