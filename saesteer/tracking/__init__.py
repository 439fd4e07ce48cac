"""Where runs are recorded."""

from saesteer.tracking.array_cache import ArrayCache, content_key
from saesteer.tracking.content import content_digest
from saesteer.tracking.run_folder import RunFolder, environment_record, finite, write_record

__all__ = [
    "ArrayCache",
    "RunFolder",
    "content_digest",
    "content_key",
    "environment_record",
    "finite",
    "write_record",
]
