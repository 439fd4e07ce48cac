"""Where runs are recorded."""

from saesteer.tracking.run_folder import RunFolder, environment_record, write_record

__all__ = ["RunFolder", "environment_record", "write_record"]
