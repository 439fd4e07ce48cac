"""Where runs are recorded."""

from saesteer.tracking.recording import RecordedRun, recorded_run
from saesteer.tracking.store import RunStore
from saesteer.tracking.stored_run import StoredRun

__all__ = [
    "RecordedRun",
    "RunStore",
    "StoredRun",
    "recorded_run",
]
