"""The list of runs: a SQLite file beside their folders, which can be made again from them."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from saesteer.tracking.liveness import present_status
from saesteer.tracking.notes import Note, append_note
from saesteer.tracking.store_file import (
    VERSION,
    DamagedStore,
    connected,
    drop_rows,
    is_ours,
    make_table,
    put_rows,
    read_rows,
    version,
)
from saesteer.tracking.stored_run import RECORD, StoredRun, find_runs, folder_id, moment, read_run
from saesteer.utils.errors import DataError, OutputError

FILE_NAME = "index.sqlite"
_LEVELS = 3
_JSON_FIELDS = ("config", "metrics", "stages", "tags", "notes", "versions", "record")


def root_of(folder: Path) -> Path:
    """Return the folder of runs that a run's folder belongs to.

    The outermost of three folders above it that holds a list of runs; else the one just above.
    """
    above = list(folder.resolve().parents)[:_LEVELS]
    listed = [place for place in above if is_ours(place / FILE_NAME)]
    return listed[-1] if listed else folder.parent


class RunStore:
    """Finds recorded runs again; several processes may use one at once.

    The folders are the truth: whatever happens to the file, `rebuild` makes it again.

    Args:
        root: The folder that holds the runs' folders, such as `runs`.
        path: The SQLite file; SAESTEER_STORE, or `index.sqlite` in the root, if None.

    Example:
        >>> store = RunStore(Path("runs"))
        >>> [run.name for run in store.runs()]
        []
    """

    def __init__(self, root: Path, path: Path | None = None) -> None:
        named = os.environ.get("SAESTEER_STORE")
        self.root = root
        self.path = path or (Path(named).expanduser() if named else root / FILE_NAME)

    def put(self, folder: Path) -> StoredRun:
        """Write down a run as its folder tells it now.

        Raises:
            OutputError: The folder holds no run, or the file cannot be written.
        """
        run = read_run(folder)
        if run is None:
            raise OutputError(f"{folder} holds no {RECORD} of a run; give a run's folder.")
        self._make_home()
        with connected(self.path, writes=True) as connection:
            if version(connection) == VERSION:
                put_rows(connection, [self._row(run)])
                return run
            # New, or of another version: the folders know what else belongs there.
            make_table(connection)
            put_rows(connection, [self._row(each) for each in _named([run], [self.root])])
        return run

    def runs(self) -> list[StoredRun]:
        """Return every run, the latest start first; folders that are gone are left out.

        Raises:
            DamagedStore: The file is broken.
            OutputError: It cannot be read.
        """
        if not self.path.exists():
            return self.folders()
        with connected(self.path) as connection:
            rows = read_rows(connection) if version(connection) == VERSION else None
        if rows is None:
            return self.folders()
        found = (self._run(row) for row in rows)
        return _newest_first(_named((run for run in found if run is not None), []))

    def folders(self) -> list[StoredRun]:
        """Return every run below the root, read from the folders alone, the latest first."""
        return _newest_first(_named([], [self.root]))

    def find(self, name: str | Path) -> StoredRun:
        """Return a run by its id, the beginning of its id, its folder or its folder's name.

        Raises:
            DataError: There is no such run, or the beginning fits several.
            OutputError: The file cannot be read.
        """
        with suppress(OSError, ValueError):
            own = read_run(Path(name)) if name and Path(name).is_dir() else None
            if own is not None:
                return own
        return find_among(self.runs(), str(name))

    def add_note(self, run: StoredRun | str | Path, note: Note) -> StoredRun:
        """Add a note to a run, with the time; it is kept in the run's folder.

        Args:
            run: The run, or what `find` takes.
            note: Text, or named parts such as {"observation": ..., "hypothesis": ...}.

        Returns:
            The run with the note.

        Raises:
            DataError: The note is empty, or there is no such run.
            OutputError: The folder or the file cannot be written.
        """
        found = run if isinstance(run, StoredRun) else self.find(run)
        append_note(found.folder, note)
        return self.put(found.folder)

    def rebuild(self, roots: Sequence[Path] = ()) -> list[StoredRun]:
        """Make the file again from the runs' folders; a damaged one is set aside.

        Args:
            roots: Folders to look in besides the root.

        Returns:
            What is in it now, the latest start first.

        Raises:
            OutputError: The file cannot be written.
        """
        known: list[StoredRun] = []
        try:
            # A store of several roots keeps the runs of those that were not named.
            known = [run for run in self.runs() if run.folder.is_dir()]
        except DamagedStore:
            self._set_aside()
        runs = list(_named(known, [self.root, *roots]))
        self._make_home()
        with connected(self.path, writes=True) as connection:
            if version(connection) == VERSION:
                drop_rows(connection)
            else:
                make_table(connection)
            put_rows(connection, [self._row(run) for run in runs])
        return _newest_first(runs)

    def _make_home(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.path.parent} cannot be made ({error.strerror}); name another place for the "
                "list of runs with SAESTEER_STORE."
            ) from error

    def _set_aside(self) -> None:
        for end in ("-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        try:
            os.replace(self.path, f"{self.path}.damaged")
        except OSError as error:
            raise OutputError(
                f"{self.path} is damaged and cannot be moved ({error.strerror}); delete it."
            ) from error

    def _row(self, run: StoredRun) -> dict[str, Any]:
        folder, home = run.folder.resolve(), self.path.parent.resolve()
        # Relative, so that a folder of runs can be moved with its list.
        inside = folder.is_relative_to(home)
        row = {**run.as_dict(), "folder": str(folder.relative_to(home) if inside else folder)}
        row |= {name: json.dumps(row[name], ensure_ascii=False) for name in _JSON_FIELDS}
        return {**row, "touched": _touched(run.folder)}

    def _run(self, row: dict[str, Any]) -> StoredRun | None:
        folder = self.path.parent / row["folder"]
        touched = _touched(folder)
        if not touched:
            return None
        if touched != row["touched"]:
            # The store could not be told, or the run is still at it.
            own = read_run(folder)
            if own is not None:
                return own
        values = {key: value for key, value in row.items() if key != "touched"}
        values |= {name: json.loads(row[name]) for name in _JSON_FIELDS}
        status = present_status({**values["record"], "status": values["status"]}, touched)
        values |= {"folder": folder, "status": status}
        values |= {"tags": tuple(values["tags"]), "notes": tuple(values["notes"])}
        return StoredRun(**values)


def find_among(runs: Sequence[StoredRun], name: str) -> StoredRun:
    """Return the run of an id, the beginning of one, or a folder's path or name.

    Raises:
        DataError: There is none, or there are several; the nearest are named.
    """
    exact = [run for run in runs if name in (run.id, run.folder.name, str(run.folder))]
    found = exact or [run for run in runs if name and run.id.startswith(name.lower())]
    if len({run.folder for run in found}) == 1:
        return found[0]
    if found:
        listed = ", ".join(run.id for run in found[:5])
        raise DataError(f"{name!r} is the beginning of several runs ({listed}); write more of it.")
    names = [word for run in runs for word in (run.id, run.folder.name)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "; see saesteer runs list."
    raise DataError(f"there is no run {name!r}{hint}")


def _named(first: Iterable[StoredRun], roots: Iterable[Path]) -> list[StoredRun]:
    """Return runs with those below folders; a copy of a run's folder is a run of its own."""
    by_folder = {run.folder.resolve(): run for run in first}
    for root in roots:
        for folder in find_runs(root):
            run = read_run(folder)
            if run is not None:
                by_folder[folder.resolve()] = run
    taken: set[str] = set()
    named = []
    for folder, run in by_folder.items():
        named.append(replace(run, id=folder_id(folder)) if run.id in taken else run)
        taken.add(run.id)
    return named


def _newest_first(runs: Iterable[StoredRun]) -> list[StoredRun]:
    return sorted(runs, key=lambda run: (moment(run.started), run.folder.name), reverse=True)


def _touched(folder: Path) -> float:
    try:
        return (folder / RECORD).stat().st_mtime
    except OSError:
        return 0.0
