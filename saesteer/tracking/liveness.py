"""Whether the process that a record names is still at work: of a run, or of a sweep's trial."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from saesteer.utils.files import is_running

BEAT_SECONDS = 30.0
SILENT_SECONDS = 300.0


def process_record() -> dict[str, Any]:
    """Return what tells this process from every other one, also a later one of the same number."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _started(os.getpid()),
    }


def is_alive(record: Mapping[str, Any]) -> bool | None:
    """Return whether a record's process is at work; None for another machine's."""
    pid = record.get("pid")
    if record.get("host") != socket.gethostname() or not isinstance(pid, int):
        return None
    if not is_running(pid):
        return False
    now, then = _started(pid), record.get("process_started")
    return now != "ended" and (now is None or then is None or now == then)


def present_status(record: Mapping[str, Any], last_beat: float) -> str:
    """Return a run's status as it is now: a running one whose process is gone was killed.

    `last_beat` is when its `run.json` was last touched, in seconds since 1970.
    """
    status = str(record.get("status") or "unknown")
    if status != "running":
        return status
    alive = is_alive(record)
    if alive is None:
        # Another machine's processes cannot be seen, only that they have fallen silent.
        alive = time.time() - last_beat < SILENT_SECONDS
    return "running" if alive else "killed"


class Heartbeat:
    """Calls a function every so many seconds while a block is at work, whatever it raises."""

    def __init__(self, beat: Callable[[], object], seconds: float = BEAT_SECONDS) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        # A beat that is under way must not land on what has ended.
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            # A disk or a database may be away for a moment; the next beat may reach it.
            with suppress(Exception):
                self._beat()


def _started(pid: int) -> str | None:
    """Return when a process started, in the system's own count; None where it does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name in brackets may hold spaces and brackets itself.
        fields = text.rpartition(")")[2].split()
        return "ended" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None
