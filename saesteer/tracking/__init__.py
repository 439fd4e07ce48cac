"""Where runs are recorded."""

from saesteer.tracking.array_cache import ArrayCache, content_key
from saesteer.tracking.content import content_digest
from saesteer.tracking.recording import RecordedRun, recorded_run
from saesteer.tracking.run_folder import RunFolder, environment_record, finite, write_record
from saesteer.tracking.store import RunStore
from saesteer.tracking.stored_run import StoredRun

__all__ = [
    "ArrayCache",
    "RecordedRun",
    "RunFolder",
    "RunStore",
    "StoredRun",
    "content_digest",
    "content_key",
    "environment_record",
    "finite",
    "recorded_run",
    "write_record",
]
