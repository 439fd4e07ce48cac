"""What Neuronpedia answered, in one SQLite file: answers by what was asked, labels by feature."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from saesteer.saes.neuronpedia.tables import VERSION, tables
from saesteer.utils.errors import OutputError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Below SQLite's oldest limit on the variables of one statement.
_AT_ONCE = 900


@dataclass(frozen=True)
class Kept:
    """An answer in the cache.

    Attributes:
        value: Its JSON; None where the service said that there is no such thing.
        age: How long ago it came, seconds.
    """

    value: Any
    age: float


def content_key(*stated: Any) -> str:
    """Return the SHA-256 of what was asked; equal questions have equal keys."""
    text = json.dumps(stated, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Cache:
    """Answers and labels, safe for several processes at once.

    Args:
        path: The SQLite file, made with its folder when something is first kept.
        now: What tells the time, seconds.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, now: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self._now = now
        self._engine: Engine | None = None

    def get(self, key: str, max_age: float | None = None) -> Kept | None:
        """Return the answer kept under a key, unless it is older than `max_age` seconds.

        Raises:
            OutputError: The file cannot be read.
        """
        return self.get_many([key], max_age).get(key)

    def get_many(self, keys: Sequence[str], max_age: float | None = None) -> dict[str, Kept]:
        """Return the answers kept under keys; those that are not there, or too old, are left out.

        Raises:
            OutputError: The file cannot be read.
        """
        from sqlalchemy import select

        if not self.path.is_file():
            return {}
        table = tables().replies
        found: dict[str, Kept] = {}
        with self.connection() as connection:
            for first in range(0, len(keys), _AT_ONCE):
                some = keys[first : first + _AT_ONCE]
                for row in connection.execute(select(table).where(table.c.key.in_(some))):
                    kept = Kept(self._unpacked(row.body), max(0.0, self._now() - row.fetched))
                    if max_age is None or kept.age <= max_age:
                        found[row.key] = kept
        return found

    def put(self, key: str, value: Any) -> None:
        """Keep an answer; None for "there is no such thing".

        Raises:
            OutputError: The file cannot be written.
        """
        self.put_many({key: value})

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Keep several answers at once.

        Raises:
            OutputError: The file cannot be written.
        """
        from sqlalchemy.dialects.sqlite import insert

        if not values:
            return
        table, now = tables().replies, self._now()
        rows = [
            {"key": key, "body": zlib.compress(json.dumps(value).encode()), "fetched": now}
            for key, value in values.items()
        ]
        statement = insert(table)
        statement = statement.on_conflict_do_update(
            index_elements=[table.c.key],
            set_={"body": statement.excluded.body, "fetched": statement.excluded.fetched},
        )
        with self.connection(writes=True) as connection:
            connection.execute(statement, rows)

    def labels(self, source: str) -> dict[int, str]:
        """Return all imported labels of an SAE, by feature.

        Args:
            source: Model and source, such as "gpt2-small/6-res-jb".

        Raises:
            OutputError: The file cannot be read.
        """
        from sqlalchemy import select

        if not self.path.is_file():
            return {}
        table = tables().explanations
        query = (
            select(table.c.feature, table.c.description)
            .where(table.c.source == source, table.c.description != "")
            .order_by(table.c.feature, table.c.place.desc())
        )
        with self.connection() as connection:
            # Of several explanations the first stays, which comes last here.
            return dict(iter(connection.execute(query).tuples()))

    def imported(self, source: str) -> dict[str, Any]:
        """Return what is imported of an SAE: for each file its size, for labels their number.

        Raises:
            OutputError: The file cannot be read.
        """
        from sqlalchemy import func, select

        if not self.path.is_file():
            return {"files": {}, "labels": 0}
        kept = tables()
        files, labels = kept.files, kept.explanations
        with self.connection() as connection:
            listed = connection.execute(
                select(files.c.name, files.c.digest).where(files.c.source == source)
            ).tuples()
            known = dict(iter(listed))
            counted = select(func.count(func.distinct(labels.c.feature)))
            n_labels = connection.execute(counted.where(labels.c.source == source)).scalar_one()
        return {"files": known, "labels": int(n_labels)}

    def feature(self, source: str, index: int) -> dict[str, Any] | None:
        """Return what imported files say of one feature, in the API's own form, if anything.

        Raises:
            OutputError: The file cannot be read.
        """
        from sqlalchemy import select

        if not self.path.is_file():
            return None
        kept = tables()
        words, facts = kept.explanations, kept.facts
        with self.connection() as connection:
            listed = connection.execute(
                select(words)
                .where(words.c.source == source, words.c.feature == index)
                .order_by(words.c.place)
            ).all()
            known = connection.execute(
                select(facts.c.body).where(facts.c.source == source, facts.c.feature == index)
            ).scalar_one_or_none()
        if not listed and known is None:
            return None
        model, _, layer = source.partition("/")
        explanations = [
            {
                "description": row.description,
                "explanationModelName": row.explainer,
                "typeName": row.kind,
            }
            for row in listed
        ]
        rest = {} if known is None else self._unpacked(known)
        place = {"modelId": model, "layer": layer, "index": str(index)}
        return {**rest, **place, "explanations": explanations, "activations": []}

    @contextmanager
    def connection(self, *, writes: bool = False) -> Iterator[Connection]:
        """Open one transaction; it is rolled back if the block raises.

        Args:
            writes: Whether it will write; writers wait for each other from the start.

        Raises:
            OutputError: The file cannot be read or written.
        """
        from sqlalchemy.exc import DatabaseError

        try:
            with self._opened().execution_options(writes=writes).begin() as connection:
                yield connection
        except (DatabaseError, OSError) as error:
            said = " ".join(str(getattr(error, "orig", error)).split())[:120]
        else:
            return
        raise OutputError(
            f"Neuronpedia's cache {self.path} cannot be used ({said}); free some space, delete the "
            "file, or set SAESTEER_CACHE to another folder."
        )

    def close(self) -> None:
        """Close the file."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _opened(self) -> Engine:
        from sqlalchemy import URL, create_engine, event

        if self._engine is not None:
            return self._engine
        if self.path.is_file() and not _can_write(self.path):
            # Such as labels that somebody shares. Without a journal beside them nobody writes them,
            # and one cannot be made.
            journal = self.path.with_name(f"{self.path.name}-wal")
            how = {"mode": "ro", "uri": "true"} | ({} if journal.is_file() else {"immutable": "1"})
            self._engine = create_engine(
                URL.create("sqlite", database=f"file:{quote(str(self.path))}", query=how)
            )
            return self._engine
        self.path.parent.mkdir(parents=True, exist_ok=True)
        address = URL.create("sqlite", database=str(self.path))
        engine = create_engine(address, connect_args={"timeout": 60})

        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, _record: Any) -> None:
            # The driver's own transactions start late, at the first write.
            connection.isolation_level = None
            # Readers and a writer do not wait for each other; what is lost with the power is only
            # asked again.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        with engine.execution_options(writes=True).begin() as connection:
            found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if found not in (0, VERSION):
                raise OSError(f"it is of version {found} and this saesteer keeps {VERSION}")
            tables().metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={VERSION}")
        self._engine = engine
        return engine

    def _unpacked(self, body: bytes) -> Any:
        try:
            return json.loads(zlib.decompress(body))
        except (zlib.error, ValueError) as error:
            raise OSError(f"an entry is damaged: {error}") from None


def _can_write(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
