"""Where runs are recorded."""

from saesteer.tracking.content import content_digest
from saesteer.tracking.run_folder import RunFolder, environment_record, finite, write_record

__all__ = ["RunFolder", "content_digest", "environment_record", "finite", "write_record"]
