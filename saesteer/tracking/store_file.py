"""The SQLite file behind the list of runs: its table, and connections that many may hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.utils.errors import OutputError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table

# Raised when the table changes; a file of another version is made again from the folders.
VERSION = 1
# SQLite's mark of whose file it is: "sSt" and a 1.
APPLICATION = 0x73537401
BUSY_SECONDS = 20.0


class DamagedStore(OutputError):
    """The file is no SQLite database, or a broken one."""


@contextmanager
def connected(path: Path, *, writes: bool = False) -> Iterator[Connection]:
    """Open the file in one transaction.

    Args:
        path: The file; its folder is there.
        writes: Take the right to write at once, waiting for others up to 20 seconds.

    Raises:
        DamagedStore: The file is broken.
        OutputError: It cannot be read or written, or others hold it too long.
    """
    from sqlalchemy.exc import DatabaseError, SQLAlchemyError

    engine = _engine(path, writes)
    try:
        with engine.begin() as connection:
            yield connection
    except DatabaseError as error:
        reason = str(error.orig or error)
        if any(word in reason for word in ("malformed", "not a database", "no such", "disk image")):
            raise DamagedStore(
                f"{path} is damaged ({reason}); make it again with saesteer runs rebuild."
            ) from error
        raise _trouble(path, reason) from error
    except (SQLAlchemyError, OSError) as error:
        raise _trouble(path, str(error)) from error
    finally:
        engine.dispose()


def version(connection: Connection) -> int:
    """Return the version of the file's table; 0 if the file is new.

    Raises:
        OutputError: It is another program's database.
    """
    found = connection.exec_driver_sql("SELECT COUNT(*) FROM sqlite_master").scalar()
    owner = connection.exec_driver_sql("PRAGMA application_id").scalar()
    if found and owner != APPLICATION:
        raise OutputError(
            f"{connection.engine.url.database} is another program's database; name another file "
            "with SAESTEER_STORE."
        )
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar() or 0) if found else 0


def is_ours(path: Path) -> bool:
    """Return whether a file is a list of runs, by its first bytes."""
    try:
        with path.open("rb") as stream:
            return stream.read(100)[68:72] == APPLICATION.to_bytes(4, "big")
    except OSError:
        return False


def make_table(connection: Connection) -> None:
    """Make the table anew, and note its version."""
    from sqlalchemy import inspect

    for name in inspect(connection).get_table_names():
        connection.exec_driver_sql(f'DROP TABLE "{name}"')
    runs_table().metadata.create_all(connection)
    connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION}")
    connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")


def read_rows(connection: Connection) -> list[dict[str, Any]]:
    """Return every row, by column."""
    from sqlalchemy import select

    return [dict(row) for row in connection.execute(select(runs_table())).mappings()]


def put_rows(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows over those of the same folder."""
    from sqlalchemy.dialects.sqlite import insert

    for row in rows:
        added = insert(runs_table()).values(**row)
        connection.execute(added.on_conflict_do_update(index_elements=["folder"], set_=row))


def drop_rows(connection: Connection) -> None:
    """Take every row out."""
    connection.execute(runs_table().delete())


@cache
def runs_table() -> Table:
    """Return the table of runs."""
    from sqlalchemy import Column, Float, MetaData, Table, Text

    needed = ["id", "kind", "name", "status", "config", "metrics", "stages"]
    needed += ["tags", "notes", "versions", "record"]
    optional = ["started", "ended", "group", "parent", "error", "commit"]
    return Table(
        "runs",
        MetaData(),
        # Not the id, which a copied folder shares with its original.
        Column("folder", Text, primary_key=True),
        *(Column(name, Text, nullable=False) for name in needed),
        *(Column(name, Text) for name in optional),
        Column("seconds", Float),
        Column("touched", Float, nullable=False),
    )


def _engine(path: Path, writes: bool) -> Engine:
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import URL
    from sqlalchemy.pool import NullPool

    # A pool would carry open files into forked processes.
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS},
        poolclass=NullPool,
    )

    def on_connect(connection: Any, _record: Any) -> None:
        # The driver's own transactions begin too late for readers and writers to keep apart.
        connection.isolation_level = None
        if writes:
            # Another process may be changing the mode at this moment; then it is changed.
            with suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def _trouble(path: Path, reason: str) -> OutputError:
    return OutputError(
        f"the list of runs {path} cannot be used ({reason}); name another with SAESTEER_STORE, or "
        "delete it and run saesteer runs rebuild."
    )
