"""Recording a run: what it is, how it went and what came of it, in its folder and at W&B."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from saesteer.tracking.liveness import Heartbeat, process_record
from saesteer.tracking.runs import RECORD, Note, add_note, check_record
from saesteer.tracking.wandb import WandbMirror, start_mirror
from saesteer.utils.errors import OutputError, SaesteerError
from saesteer.utils.files import append_json
from saesteer.utils.progress import Progress
from saesteer.utils.redaction import redact, redact_command, redact_text
from saesteer.utils.run_folder import RunFolder, environment_record, write_record
from saesteer.utils.settings import TrackingSettings
from saesteer.utils.text import one_line
from saesteer.utils.values import merged, plain, scalars

LOG, WANDB = "log.jsonl", "wandb"


class RecordedRun:
    """A run that is under way; made by `recorded_run`.

    The folder gets everything that is said here. W&B gets it too where it was asked for, and a
    table or a figure goes to W&B alone: the command that makes one writes its own file.
    """

    def __init__(
        self, folder: RunFolder, record: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        # Eight hexadecimal digits, the same whenever the run is gone on with.
        self.id = str(record["id"])
        self.folder = folder
        self._seconds: dict[str, float] = dict(record.get("seconds") or {})
        self._metrics: dict[str, Any] = dict(record.get("metrics") or {})
        self._artifacts: dict[str, str] = dict(record.get("artifacts") or {})
        self._warn = warn
        self._mirror: WandbMirror | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; a stage that is entered again, or by a later resumption, adds up."""
        start = time.perf_counter()
        self._update(stage=name)
        try:
            yield
        finally:
            spent = self._seconds.get(name, 0.0) + time.perf_counter() - start
            self.timings({name: round(spent, 2)})

    def timings(self, seconds: Mapping[str, float]) -> None:
        """Record what stages took that were timed elsewhere, in seconds."""
        self._seconds.update(plain(seconds))
        self._update(seconds=self._seconds, stage=None)
        self._mirrored("timings", self._seconds)

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record one point of each curve in `log.jsonl`; without a step the order counts."""
        record = {**({} if step is None else {"step": int(step)}), **plain(values)}
        with self._warned():
            append_json(self.folder.path / LOG, record)
        self._mirrored("log", record)

    def curve(self, name: str, rows: Sequence[Mapping[str, Any]], x: str) -> None:
        """Record a whole curve in `curves/<name>.json`; recorded again, it replaces itself.

        Its rows are numbers by name, of which `x` names the horizontal axis.
        """
        points = [plain(row) for row in rows]
        self.keep(f"curves/{name}.json", {"x": x, "points": points})
        self._mirrored("curve", name, points, x)

    @property
    def shown_elsewhere(self) -> bool:
        """Whether tables and figures are shown anywhere, so that drawing one is worth it."""
        return self._mirror is not None

    def keep(self, name: str, value: Any) -> None:
        """Write JSON into the folder, where a command has no other place for its result."""
        with self._warned():
            self.folder.write_json(name, redact(plain(value)))

    def table(self, name: str, frame: Any) -> None:
        """Show a table at W&B: a pandas DataFrame, or a list of mappings."""
        self._mirrored("table", name, frame)

    def figure(self, name: str, figure: Any) -> None:
        """Show a figure at W&B: a Plotly figure, or the path of an HTML page or a picture."""
        self._mirrored("figure", name, figure)

    def artifact(self, name: str, path: str | Path, kind: str = "result") -> None:
        """Name a file or folder that the run has made; W&B gets a copy, of type `kind`."""
        place = Path(path)
        with suppress(ValueError):
            place = place.resolve().relative_to(self.folder.path.resolve())
        self._artifacts[name] = str(place)
        self._update(artifacts=self._artifacts)
        self._mirrored("artifact", name, Path(path), kind)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Record the run's metrics, over those that have the same name.

        NaN and infinity become null. Lists are left out: they belong in a file.
        """
        self._metrics = merged(self._metrics, scalars(plain(metrics)))
        self._update(metrics=self._metrics)
        self._mirrored("summary", self._metrics)

    def note(self, note: Note) -> None:
        """Append a note, with the time: text, or named parts."""
        try:
            add_note(self.folder.path, note)
        except SaesteerError as error:
            self._warn(str(error))

    def _update(self, **changes: Any) -> None:
        with self._warned():
            write_record(self.folder, redact(changes))

    @contextmanager
    def _warned(self) -> Iterator[None]:
        # A run's own results fail with their own sentence; a record of them only warns.
        try:
            yield
        except OutputError as error:
            self._warn(f"not recorded: {error}")

    def _mirrored(self, what: str, *arguments: Any) -> None:
        if self._mirror is not None:
            self._mirror.do(what, *arguments)

    def _is_bare(self) -> bool:
        """Return whether nothing has come of the run yet but its record, and W&B's copy of it."""
        try:
            files = {file.name for file in self.folder.path.iterdir()}
        except OSError:
            return False
        return files <= {RECORD, WANDB} and not self._metrics


@contextmanager
def recorded_run(
    folder: RunFolder,
    *,
    kind: str,
    name: str,
    config: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    group: str | None = None,
    parent: str | None = None,
    wandb: TrackingSettings | None = None,
    progress: Progress | None = None,
) -> Iterator[RecordedRun]:
    """Record what runs inside, from "running" to "finished", "failed" or "stopped".

    The folder's `run.json` is the truth; W&B, where asked for, is told, and cannot make the run
    fail. A folder that is entered again stays the same run: its id, its start and what it has
    found are kept. A new folder in which nothing was made before an error of ours, such as a model
    and an SAE that do not fit, is taken away again.

    Args:
        folder: The run's folder; made if it is not there.
        kind: Such as "run", "compare" or "patch".
        name: What the user calls it.
        config: The settings, as JSON values; secrets are taken out.
        tags: Words to find it by, besides those of `wandb.tags`.
        group: What it belongs to, such as a sweep's id; `wandb.group` if None.
        parent: The id of the run that it is a part of.
        wandb: The settings `tracking` of a configuration; WANDB_ variables alone decide if None.
        progress: Where warnings are said; Python's warnings if None.

    Yields:
        The run, to be told stages, curves and metrics.

    Raises:
        OutputError: A new folder cannot be made, or the record of an old one is damaged.
    """
    settings = wandb or TrackingSettings()
    warn = _warner(progress)
    earlier = _earlier_record(folder)
    in_group = os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_SWEEP_ID")
    now = {
        **environment_record(),
        "id": earlier.get("id") or token_hex(4),
        "kind": kind,
        "name": name,
        "tags": sorted({*tags, *settings.tags, *(earlier.get("tags") or ())}),
        "group": group or settings.group or in_group or earlier.get("group"),
        "parent": parent or earlier.get("parent"),
        "config": {k: v for k, v in plain(config or {}).items() if k != "tracking"},
        "status": "running",
        "error": None,
        "stage": None,
        "ended": None,
        **process_record(),
    }
    record = {**earlier, **redact(now), "command": redact_command(sys.argv)}
    run = RecordedRun(folder, record, warn)
    # What cannot be begun is said at once; what of its record cannot be written later only warns.
    write_record(folder, record)
    run._mirror = start_mirror(settings, record, folder.path, warn)
    if run._mirror is not None:
        run._update(wandb=run._mirror.record())
    start, status, message, refused = time.perf_counter(), "finished", None, False
    before = float(earlier.get("wall_seconds") or 0.0)
    try:
        with Heartbeat(lambda: os.utime(folder.path / RECORD)):
            yield run
    except Exception as error:
        ours = isinstance(error, SaesteerError)
        said = one_line(error, 2000) or "no message"
        status, message = "failed", said if ours else f"{type(error).__name__}: {said}"
        refused = ours and not earlier and run._is_bare()
        raise
    except BaseException:
        # Ctrl-C, a generator that is closed, or an exit that somebody asked for.
        status = "stopped"
        raise
    finally:
        spent = round(before + time.perf_counter() - start, 2)
        ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        run._update(status=status, error=message, stage=None, ended=ended, wall_seconds=spent)
        if run._mirror is not None:
            # It writes into the folder to the last.
            run._mirror.finish(failed=status != "finished")
        if refused:
            # What does not fit together was never a run; nothing of it is left behind.
            shutil.rmtree(folder.path, ignore_errors=True)
        elif run._mirror is not None:
            place = run._mirror.record()
            run._update(wandb=place)
            if progress is not None and place["url"]:
                progress.say(f"W&B: {place['url']}")
            elif progress is not None and place["folder"]:
                progress.say(f"W&B, offline: upload it later with wandb sync {place['folder']}")


def run_id(folder: RunFolder) -> str | None:
    """Return the id of the run that a folder holds; None if it was never recorded."""
    try:
        record = folder.read_json(RECORD) if folder.has(RECORD) else None
    except OutputError:
        return None
    return str(record["id"]) if isinstance(record, dict) and record.get("id") else None


def _earlier_record(folder: RunFolder) -> dict[str, Any]:
    if not folder.has(RECORD):
        folder.create()
        return {}
    return check_record(folder.path / RECORD, folder.read_json(RECORD))


def _warner(progress: Progress | None) -> Callable[[str], None]:
    """Return what says a warning, each once."""
    said: set[str] = set()

    def warn(text: str) -> None:
        line = redact_text(text)
        if line in said:
            return
        said.add(line)
        if progress is None:
            warnings.warn(line, stacklevel=2)
        else:
            progress.say(f"warning: {line}")

    return warn
