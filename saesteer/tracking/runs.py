"""Recorded runs as their folders tell them: listed, found, annotated and exported."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from saesteer.tracking.liveness import present_status
from saesteer.utils.errors import ConfigError, DataError, OutputError
from saesteer.utils.files import append_json
from saesteer.utils.limits import parse_json
from saesteer.utils.redaction import redact
from saesteer.utils.run_folder import RunFolder, finite
from saesteer.utils.text import did_you_mean
from saesteer.utils.values import flatten, scalars

RECORD, NOTES = "run.json", "notes.jsonl"
Note = str | Mapping[str, Any]
_log = logging.getLogger("saesteer")
ENDINGS = (".csv", ".json", ".parquet")
# Folders of a run that hold many files and no runs.
_NO_RUNS = {
    "activations", "stages", "evaluation", "tables", "curves", "wandb", "null", "written",
    "shifts", "features", "vectors", "chosen", "layers",
}  # fmt: skip
# What `run.json` calls them.
_RECORDED_AS = {"seconds": "wall_seconds", "stages": "seconds", "commit": "git_commit"}


@dataclass(frozen=True)
class Run:
    """One run, read from its folder."""

    id: str
    kind: str
    name: str
    # running, finished, failed, stopped or killed.
    status: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    # ISO 8601 with the zone: the first start, and the last end.
    started: str | None = None
    ended: str | None = None
    # Of all resumptions together, and by stage.
    seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    tags: Sequence[str] = ()
    # Oldest first; each has "time", and "text" or named parts.
    notes: Sequence[dict[str, Any]] = ()
    group: str | None = None
    # The id of the run that it is a part of.
    parent: str | None = None
    error: str | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    # The rest of `run.json`: process, machine, command, artifacts, W&B.
    record: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the run as JSON values, as filters and exports see it."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**values, "folder": str(self.folder)}


class _Recorded(BaseModel):
    """What stands in a record that can be used, whichever version wrote it."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    id: str | None = None
    kind: str | None = None
    name: str | None = None
    status: str | None = None
    stage: str | None = None
    started: str | None = None
    ended: str | None = None
    config: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    seconds: dict[str, float] | None = None
    wall_seconds: float | None = None
    tags: list[str] | None = None
    group: str | None = None
    parent: str | None = None
    error: str | None = None
    git_commit: str | None = None
    versions: dict[str, str] | None = None
    artifacts: dict[str, str] | None = None
    wandb: dict[str, Any] | None = None


def check_record(file: Path, record: Any) -> dict[str, Any]:
    """Return a run's record; `OutputError` says what of it is of another type than was written."""
    try:
        _Recorded.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the record"
        said = str(first["msg"])
        raise OutputError(
            f"{file} holds no record of a run ({field}: {said[:1].lower()}{said[1:]}); correct or "
            "delete it, and run the same command again."
        ) from None
    return record


def list_runs(root: str | Path) -> list[Run]:
    """Return every run below a folder, the latest start first.

    A copy of a run's folder is a run of its own. A folder whose record is damaged, or that cannot
    be read, is named in a warning and left out.
    """
    found: dict[str, Run] = {}
    for folder in _folders(Path(root)):
        try:
            run = read_run(folder)
        except OutputError as error:
            _log.warning(f"left out of the list: {error}")
            continue
        if run.id in found:
            run = replace(run, id=_place_id(folder))
        found[run.id] = run
    return sorted(found.values(), key=_start, reverse=True)


def find_run(root: str | Path, name: str | Path) -> Run:
    """Return a run by its folder, its id, the beginning of its id, or its folder's name.

    Raises:
        DataError: There is none, or there are several; the nearest are named.
        OutputError: The folder's record is damaged.
    """
    # os.path, because a name that can be no path is then only not there.
    if str(name) and os.path.isfile(Path(name) / RECORD):
        return read_run(Path(name))
    name, runs = str(name), list_runs(root)
    exact = [run for run in runs if name in (run.id, run.folder.name, str(run.folder))]
    found = exact or [run for run in runs if name and run.id.startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(run.id for run in found[:5])
        raise DataError(f"{name!r} may be any of several runs ({listed}); write a whole id.")
    near = did_you_mean(name, [word for run in runs for word in (run.id, run.folder.name)])
    raise DataError(f"there is no run {name!r}{near}; see saesteer runs list.")


def read_run(folder: Path) -> Run:
    """Return the run that a folder holds; `OutputError` says that its record is damaged.

    A folder written before runs were recorded counts too: its kind is told by its files.
    """
    file = folder / RECORD
    record = check_record(file, RunFolder(folder).read_json(RECORD))
    if "kind" not in record:
        record = check_record(file, record | _guessed(folder))
    try:
        last_beat = file.stat().st_mtime
    except OSError:
        last_beat = 0.0
    status = present_status(record, last_beat)
    own = {
        one.name: record.pop(_RECORDED_AS.get(one.name, one.name), None)
        for one in fields(Run)
        if one.name not in ("folder", "notes", "record")
    }
    own |= {"id": own["id"] or _place_id(folder), "name": own["name"] or folder.name}
    own |= {"status": status, "folder": folder, "notes": read_notes(folder), "record": record}
    return Run(**{name: value for name, value in own.items() if value is not None})


def _folders(root: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(root, onerror=_say_unread):
        left_out = _NO_RUNS if RECORD in files else ()
        folders[:] = sorted(f for f in folders if f not in left_out and not f.startswith("."))
        if RECORD in files:
            yield Path(place)


def _say_unread(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        _log.warning(f"left out of the list: {error.filename} cannot be read ({error.strerror}).")


def _place_id(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


def _start(run: Run) -> tuple[float, str]:
    try:
        return datetime.fromisoformat(run.started or "").timestamp(), run.folder.name
    except ValueError:
        return 0.0, run.folder.name


def _guessed(folder: Path) -> dict[str, Any]:
    """Return kind, status, settings and metrics of a run from before runs were recorded."""
    kinds = {
        "vector.safetensors": "run",
        "tables/effects.csv": "compare",
        "probes.safetensors": "probe-train",
        "choices.json": "persona",
        "seed-0": "persona",
    }
    files, config, metrics = RunFolder(folder), {}, {}
    with suppress(OutputError):
        config = files.read_json("config.json")
    with suppress(OutputError):
        metrics = files.read_json("metrics.json")
    config, metrics = (found if isinstance(found, dict) else {} for found in (config, metrics))
    seconds = metrics.get("seconds")
    seconds = seconds if isinstance(seconds, dict) else {}
    return {
        "kind": next((kind for file, kind in kinds.items() if (folder / file).exists()), "unknown"),
        "name": config.get("name"),
        # Nothing tells how an older run ended that did not reach its end.
        "status": "finished" if metrics or files.has("done.json") else "stopped",
        "config": {key: value for key, value in config.items() if key != "tracking"},
        "metrics": scalars(metrics),
        "seconds": seconds,
        "wall_seconds": sum(v for v in seconds.values() if isinstance(v, int | float)) or None,
    }


def add_note(folder: Path, note: Note) -> dict[str, Any]:
    """Append a note, text or named parts, to a run's folder; return it with the time.

    Raises:
        DataError: The note is empty or cannot be written as JSON.
        OutputError: The folder cannot be written.
    """
    parts = {"text": note.strip()} if isinstance(note, str) else dict(note)
    if not any(value not in (None, "", [], {}) for value in parts.values()):
        raise DataError("the note is empty; write at least one word.")
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **redact(finite(parts))}
    try:
        append_json(folder / NOTES, record)
    except (TypeError, ValueError) as error:
        raise DataError(f"the note cannot be written as JSON ({error}); use text.") from error
    return record


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """Return a run's notes, oldest first; a line that a full disk has cut off is left out."""
    found = []
    with suppress(OSError):
        text = (folder / NOTES).read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            with suppress(ValueError):
                found.append(parse_json(line))
    return [note for note in found if isinstance(note, dict)]


def export_runs(runs: Sequence[Run], target: Path) -> Path:
    """Write runs to a file that ends in .csv, .json or .parquet, one row for each.

    JSON stays nested; in the others nested fields have dots.

    Raises:
        ConfigError: The ending is another.
        OutputError: The file cannot be written.
    """
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"{target} does not end in {', '.join(ENDINGS)}; name one that does.")
    folder = RunFolder(target.parent)
    if ending == ".json":
        return folder.write_json(target.name, [run.as_dict() for run in runs])
    import pandas as pd

    frame = pd.DataFrame([_row(run) for run in runs])
    if ending == ".csv":
        return folder.write(target.name, lambda draft: frame.to_csv(draft, index=False))
    for name in frame.columns:
        kinds = {type(value) for value in frame[name].dropna()}
        if len(kinds) > 1 and not kinds <= {int, float}:
            # A Parquet column has one kind.
            frame[name] = frame[name].map(lambda v: v if v is None or v != v else str(v))
    return folder.write(target.name, lambda draft: frame.to_parquet(draft, index=False))


def _row(run: Run) -> dict[str, Any]:
    flat = flatten({key: value for key, value in run.as_dict().items() if key != "record"})
    nested = (list, tuple, dict)
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, nested) else value
        for name, value in flat.items()
    }
