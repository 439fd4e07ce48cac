"""Where a study lives: a journal file in its folder, or a database that many machines see.

Optuna's heartbeats need a database, and of SQLite its documentation says that it must not be used
for parallel optimisation and may not work on network file systems, where workers of several
machines meet; it names the journal file for that. So the folder holds a journal, and workers beat
in their trials' attributes, which any storage keeps.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.utils.errors import NetworkError, OutputError, UnwritableError
from saesteer.utils.files import unwritable

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.storages.journal import JournalFileSymlinkLock
    from sqlalchemy import Engine

JOURNAL = "journal.log"
URL_VARIABLE = "SAESTEER_STUDY_URL"
# Waited for by everybody else when a worker dies with the journal's lock in its hand.
LOCK_SECONDS = 15
_DRIVERS = {"postgresql": "psycopg2-binary", "mysql": "PyMySQL"}


def is_url(where: str) -> bool:
    """Return whether a study lives in a database."""
    return "://" in where


def plain_url(where: str) -> str:
    """Return a place without the password in it."""
    head, sign, rest = where.partition("://")
    if not sign:
        return where
    login, at, host = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{head}://{user}{':***' if colon else ''}{at}{host}"


def open_storage(where: str) -> BaseStorage:
    """Open the storage in a folder, or at a database's URL, making it where it is not there."""
    with quiet_optuna():
        return _database(where) if is_url(where) else _journal(Path(where))


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from printing, and from warning of what we use on purpose."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _journal(folder: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            try:
                super().append_logs(logs)
            except OSError as error:
                # What follows must begin on a line of its own.
                with suppress(OSError):
                    _end_last_line(file, lock)
                raise unwritable(file, error) from error

    file = folder / JOURNAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(str(file), grace_period=LOCK_SECONDS)
        _end_last_line(file, lock)
        return JournalStorage(Backend(str(file), lock_obj=lock))
    except OSError as error:
        raise UnwritableError(
            f"the study's folder {folder} cannot be written ({error.strerror}); choose another "
            "with --set folder=..."
        ) from error
    except ValueError as error:
        raise OutputError(
            f"{file} is damaged ({error}); delete the line that is not JSON, or the folder to "
            "begin anew: the runs themselves are kept elsewhere."
        ) from error


def _end_last_line(file: Path, lock: JournalFileSymlinkLock) -> None:
    """Take away the half line that a full disk or a crash of the machine leaves at the end."""
    if _is_whole(file):
        return
    # Or is somebody just writing it?
    lock.acquire()
    try:
        if not _is_whole(file):
            os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def _is_whole(file: Path) -> bool:
    if not file.is_file() or not file.stat().st_size:
        return True
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = plain_url(url)
    arguments = {"timeout": 60} if url.startswith("sqlite") else {}
    try:
        storage = RDBStorage(
            url, engine_kwargs={"connect_args": arguments, "pool_pre_ping": not arguments}
        )
        if arguments:
            _lock_before_reading(storage.engine)
        return storage
    except (ArgumentError, NoSuchModuleError) as error:
        raise OutputError(
            f"{shown} is no database that is known here; write sqlite:///file.db, "
            "postgresql://user@host/name or mysql+pymysql://user@host/name."
        ) from error
    except ImportError as error:
        kind = url.partition(":")[0].partition("+")[0]
        raise OutputError(
            f"{shown} needs a driver that is not installed; pip install "
            f"{_DRIVERS.get(kind, 'its driver')}."
        ) from error
    except SQLAlchemyError as error:
        raise NetworkError(
            f"the database {shown} cannot be opened ({type(error).__name__}); check that it runs, "
            "and its name, user and password."
        ) from None


def _lock_before_reading(engine: Engine) -> None:
    """Have SQLite take its lock when a transaction begins.

    It has no SELECT FOR UPDATE, by which Optuna keeps two workers from taking one trial: both
    would read that it waits before either writes that it runs.
    """
    from sqlalchemy import event

    def leave_transactions_to_us(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", leave_transactions_to_us)
    event.listen(engine, "begin", begin)
    # Connections made before now know nothing of it.
    engine.dispose()
