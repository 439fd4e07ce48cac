"""Who has a trial, and whether they are still there."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from saesteer.tracking.liveness import present_status, process_record

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Beats in the time after which a silent worker counts as gone.
BEATS = 6


class Lease:
    """What a worker writes on the trials that it takes.

    Attributes:
        worker: The worker's name: its machine and process.
    """

    def __init__(self) -> None:
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self._process = process_record()
        self._beats = itertools.count()

    def record(self) -> dict[str, Any]:
        """Return the next beat, unlike every one before."""
        return {"worker": self.worker, "beat": next(self._beats), **self._process}


class Heartbeat:
    """Renews a lease while a trial runs; use it as a context manager.

    Args:
        beat: Writes one beat; an error of the storage is waited out.
        seconds: How often.
    """

    def __init__(self, beat: Callable[[], None], seconds: float) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        # A beat under way must not land on a trial that has ended.
        self._thread.join(timeout=30)

    def _run(self) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        while not self._ended.wait(self._seconds):
            try:
                self._beat()
            except UpdateFinishedTrialError:
                return
            except Exception:
                # A database that is away for a moment; the next beat may reach it.
                continue


class Watchman:
    """Tells which trials' workers are gone.

    A worker on this machine is gone when its process is. Another machine's is gone when its lease
    has not changed for the sweep's lease time, by this machine's own clock: clocks of machines
    differ.

    Args:
        lease: Seconds.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._seen: dict[int, tuple[Any, float]] = {}

    def is_gone(self, trial: FrozenTrial, now: float | None = None) -> bool:
        """Return whether a running trial's worker is gone.

        Args:
            trial: The trial.
            now: This machine's monotonic clock, in seconds.
        """
        now = time.monotonic() if now is None else now
        lease: Mapping[str, Any] = trial.user_attrs.get("lease") or {}
        if lease.get("host") == socket.gethostname():
            return present_status({"status": "running", **lease}, time.time()) == "killed"
        beat = (lease.get("worker"), lease.get("beat"))
        known, since = self._seen.get(trial._trial_id, (None, now))
        if known != beat:
            self._seen[trial._trial_id] = (beat, now)
            return False
        return now - since > self._lease
