"""Notes on a run, kept in its folder so that they outlive the store."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saesteer.tracking.redaction import redact
from saesteer.utils.errors import DataError, OutputError
from saesteer.utils.run_folder import finite

NOTES = "notes.jsonl"
Note = str | Mapping[str, Any]


def append_note(folder: Path, note: Note) -> dict[str, Any]:
    """Append a note to a run's folder, with the time.

    Args:
        folder: The run's folder.
        note: Text, or named parts such as {"observation": ..., "hypothesis": ...}.

    Returns:
        The note as it was written: "time", and "text" or the named parts.

    Raises:
        DataError: The note is empty or cannot be written as JSON.
        OutputError: The folder cannot be written.
    """
    parts = {"text": note.strip()} if isinstance(note, str) else dict(note)
    if not any(value not in (None, "", [], {}) for value in parts.values()):
        raise DataError("the note is empty; write at least one word.")
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **redact(finite(parts))}
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"the note cannot be written as JSON ({error}); use text.") from error
    try:
        # One write to a file opened for appending: notes of two processes do not mix.
        handle = os.open(folder / NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise OutputError(
            f"{folder / NOTES} cannot be written ({error.strerror}); free some space or make the "
            "folder writable."
        ) from error
    return record


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """Return a run's notes, oldest first; a line that is no note is left out."""
    try:
        text = (folder / NOTES).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            note = json.loads(line)
        except ValueError:
            continue
        if isinstance(note, dict):
            found.append(note)
    return found
