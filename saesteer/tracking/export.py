"""Runs as one table in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saesteer.tracking.queries import flatten
from saesteer.tracking.stored_run import StoredRun
from saesteer.utils.errors import ConfigError
from saesteer.utils.run_folder import RunFolder

ENDINGS = (".csv", ".json", ".parquet")


def export_runs(runs: Sequence[StoredRun], target: Path) -> Path:
    """Write runs to a file, one row for each; in CSV and Parquet nested fields have dots.

    Args:
        runs: The runs.
        target: A file that ends in .csv, .json (which stays nested) or .parquet.

    Raises:
        ConfigError: The ending is another.
        OutputError: The file cannot be written.
    """
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"{target} does not end in {', '.join(ENDINGS)}; name one that does.")
    folder = RunFolder(target.parent)
    if ending == ".json":
        return folder.write_json(target.name, [run.as_dict() for run in runs])
    import pandas as pd

    frame = pd.DataFrame([_row(run) for run in runs])
    if ending == ".csv":
        return folder.write(target.name, lambda draft: frame.to_csv(draft, index=False))
    for name in frame.columns:
        kinds = {type(value) for value in frame[name].dropna()}
        if len(kinds) > 1 and not kinds <= {int, float}:
            # A Parquet column has one kind.
            frame[name] = frame[name].map(lambda v: v if v is None or v != v else str(v))
    return folder.write(target.name, lambda draft: frame.to_parquet(draft, index=False))


def _row(run: StoredRun) -> dict[str, Any]:
    flat = flatten({key: value for key, value in run.as_dict().items() if key != "record"})
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for name, value in flat.items()
    }
