"""Recording commands that have no folder of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saesteer.tracking import RecordedRun, recorded_run, run_id
from saesteer.utils.errors import OutputError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import TrackingSettings, short_hash


@contextmanager
def recorded_look(
    kind: str,
    settings: Mapping[str, Any],
    *,
    name: str,
    progress: Progress,
    about: Path | None = None,
) -> Iterator[RecordedRun]:
    """Record a command such as `generate` or `doctor`, whose answer depends on `settings` alone.

    The same settings give the same folder below `looks` of the run that it is about, or of
    `runs` or SAESTEER_RUNS. Where that cannot be written the command goes on unrecorded.
    """
    about = about.parent if about is not None and about.is_file() else about
    root = about or Path(os.environ.get("SAESTEER_RUNS") or "runs")
    place = root / "looks" / f"{kind}-{short_hash({'kind': kind, **settings})}"
    with tempfile.TemporaryDirectory() as nowhere:
        try:
            if RunFolder(place).create().has("run.json"):
                RunFolder(place).read_json("run.json")
        except OutputError as error:
            progress.say(f"warning: not recorded: {error}")
            place = Path(nowhere) / "looks" / place.name
        with recorded_run(
            RunFolder(place),
            kind=kind,
            name=name,
            config=settings,
            parent=None if about is None else run_id(RunFolder(about)),
            # Whether W&B is told too is a setting, and these have none.
            wandb=TrackingSettings(wandb="off"),
            progress=progress,
        ) as recorded:
            yield recorded
