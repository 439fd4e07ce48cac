"""A recorded run as its folder tells it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from saesteer.tracking.liveness import present_status
from saesteer.tracking.notes import read_notes
from saesteer.utils.values import scalars

RECORD = "run.json"
# Folders of a run that hold many files and no runs.
_NO_RUNS = frozenset(
    [
        "activations",
        "stages",
        "evaluation",
        "tables",
        "curves",
        "wandb",
        "null",
        "written",
        "shifts",
        "features",
        "vectors",
        "chosen",
        "layers",
    ]
)


@dataclass(frozen=True)
class StoredRun:
    """One run.

    Attributes:
        id: Eight hexadecimal digits.
        kind: What kind of run, such as "run" or "compare".
        name: What the user called it.
        status: running, finished, failed, stopped or killed.
        folder: Its folder.
        config: Its settings.
        metrics: What it found.
        started: When it first began, ISO 8601 with the zone.
        ended: When it last ended; None while it runs, or if it was killed.
        seconds: How long it was at work, over all resumptions.
        stages: Seconds by stage.
        tags: Words to find it by.
        notes: Notes, oldest first; each has "time", and "text" or named parts.
        group: What it belongs to, such as a sweep.
        parent: The id of the run that it is a part of.
        error: Why it failed, one sentence.
        commit: The code's git commit.
        versions: The packages' versions.
        record: The rest of `run.json`: process, machine, command, artifacts, W&B.
    """

    id: str
    kind: str
    name: str
    status: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    notes: tuple[dict[str, Any], ...] = ()
    group: str | None = None
    parent: str | None = None
    error: str | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the run as JSON values, as filters and exports see it."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "folder": str(self.folder),
            "tags": list(self.tags),
            "notes": [dict(note) for note in self.notes],
        }


_OWN_FIELDS = frozenset(
    [
        "id",
        "kind",
        "name",
        "status",
        "config",
        "metrics",
        "started",
        "ended",
        "wall_seconds",
        "seconds",
        "tags",
        "group",
        "parent",
        "error",
        "git_commit",
        "versions",
    ]
)


def read_run(folder: Path) -> StoredRun | None:
    """Return the run that a folder holds; None if it holds none, or its record is damaged.

    A folder written before runs were recorded counts too: its kind is told by its files.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        last_beat = file.stat().st_mtime
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    if "kind" not in record:
        record = {**record, **_guessed(folder)}
    return StoredRun(
        id=str(record.get("id") or folder_id(folder)),
        kind=str(record["kind"]),
        name=str(record.get("name") or folder.name),
        status=present_status(record, last_beat),
        folder=folder,
        config=_mapping(record.get("config")),
        metrics=_mapping(record.get("metrics")),
        started=_text(record.get("started")),
        ended=_text(record.get("ended")),
        seconds=_number(record.get("wall_seconds")),
        stages=_mapping(record.get("seconds")),
        tags=tuple(map(str, record.get("tags") or ())),
        notes=tuple(read_notes(folder)),
        group=_text(record.get("group")),
        parent=_text(record.get("parent")),
        error=_text(record.get("error")),
        commit=_text(record.get("git_commit")),
        versions=_mapping(record.get("versions")),
        record={key: value for key, value in record.items() if key not in _OWN_FIELDS},
    )


def find_runs(root: Path) -> Iterator[Path]:
    """Yield every folder below a folder that holds a run, in order of their names."""
    for place, folders, files in os.walk(root):
        left_out = _NO_RUNS if RECORD in files else ()
        folders[:] = sorted(f for f in folders if f not in left_out and not f.startswith("."))
        if RECORD in files:
            yield Path(place)


def folder_id(folder: Path) -> str:
    """Return the id of a run that has none in its record: its place's hash."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


def moment(text: str | None) -> float:
    """Return a time of a record in seconds since 1970; 0 for none."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return 0.0


def _guessed(folder: Path) -> dict[str, Any]:
    """Return kind, status, settings and metrics of a run from before runs were recorded."""
    files = {
        "vector.safetensors": "run",
        "tables/effects.csv": "compare",
        "probes.safetensors": "probe-train",
        "choices.json": "persona",
        "seed-0": "persona",
    }
    found = (kind for file, kind in files.items() if (folder / file).exists())
    config, metrics = _json(folder / "config.json"), _json(folder / "metrics.json")
    done = bool(metrics) or (folder / "done.json").is_file()
    seconds = _mapping(metrics.get("seconds"))
    return {
        "kind": next(found, "unknown"),
        "name": config.get("name"),
        # Nothing tells how an older run ended that did not reach its end.
        "status": "finished" if done else "stopped",
        "config": {key: value for key, value in config.items() if key != "tracking"},
        "metrics": scalars(metrics),
        "seconds": seconds,
        "wall_seconds": sum(v for v in seconds.values() if isinstance(v, int | float)) or None,
    }


def _json(file: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
