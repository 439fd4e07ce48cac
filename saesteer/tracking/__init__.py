"""Where runs are recorded, and how they are found again."""

from saesteer.tracking.record import RecordedRun, recorded_run, run_id
from saesteer.tracking.runs import Run, add_note, find_run, list_runs

__all__ = [
    "RecordedRun",
    "Run",
    "add_note",
    "find_run",
    "list_runs",
    "recorded_run",
    "run_id",
]
