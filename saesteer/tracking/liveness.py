"""Whether the process that a run's record names is still at work."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

BEAT_SECONDS = 30.0
SILENT_SECONDS = 300.0


def process_record() -> dict[str, Any]:
    """Return what tells this process from every other one, also a later one of the same number."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _started(os.getpid()),
    }


def present_status(record: Mapping[str, Any], last_beat: float) -> str:
    """Return a run's status as it is now: a running one whose process is gone was killed.

    Args:
        record: A run's `run.json`.
        last_beat: When the run's file was last touched, in seconds since 1970.
    """
    status = str(record.get("status") or "unknown")
    if status != "running":
        return status
    here = record.get("host") == socket.gethostname()
    pid = record.get("pid")
    if here and isinstance(pid, int):
        return "running" if _is_alive(pid, record.get("process_started")) else "killed"
    # Another machine's processes cannot be seen, only that they have fallen silent.
    return "running" if time.time() - last_beat < SILENT_SECONDS else "killed"


class Heartbeat:
    """Touches a file now and then while a run is at work; use it as a context manager.

    Args:
        file: The file, which need not be there yet.
        seconds: How often.
    """

    def __init__(self, file: Path, seconds: float = BEAT_SECONDS) -> None:
        self._file, self._seconds = file, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds):
            with suppress(OSError):
                os.utime(self._file)


def _is_alive(pid: int, started: object) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except OSError:
        # Somebody else's process.
        pass
    now = _started(pid)
    return now != "ended" and (now is None or started is None or now == started)


def _started(pid: int) -> str | None:
    """Return when a process started, in the system's own count; None where it does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name in brackets may hold spaces and brackets itself.
        fields = text.rpartition(")")[2].split()
        return "ended" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None
