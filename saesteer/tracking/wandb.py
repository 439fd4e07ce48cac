"""A run's copy at Weights & Biases, made on request; nothing that goes wrong there costs a run."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from saesteer.utils.redaction import redact
from saesteer.utils.settings import TrackingSettings
from saesteer.utils.text import one_line

INIT_SECONDS = 30.0
FINISH_SECONDS = 90.0
MOST_ROWS = 10_000
HIDDEN_VARIABLES = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
_ENVIRONMENT = ("versions", "python", "machine", "git_commit", "command", "host")


def start_mirror(
    settings: TrackingSettings,
    record: Mapping[str, Any],
    folder: Path,
    warn: Callable[[str], None],
) -> WandbMirror | None:
    """Begin a run's copy at W&B, with its files in the run's `wandb`; None where not asked for.

    `warn` is told the first thing that goes wrong.
    """
    mode = wandb_mode(settings, os.environ)
    if mode is None:
        return None
    try:
        if mode == "online" and not _has_login():
            warn(
                "W&B has no key here (WANDB_API_KEY, or wandb login), so the run is kept offline "
                f"in {folder / 'wandb'}; upload it later with wandb sync."
            )
            mode = "offline"
        return WandbMirror(mode, _init_arguments(settings, record, folder), warn)
    except Exception as error:
        warn(f"W&B is left out ({type(error).__name__}: {error}); the run's folder has everything.")
        return None


def wandb_mode(settings: TrackingSettings, environ: Mapping[str, str]) -> str | None:
    """Return "online", "offline" or None for neither.

    WANDB_MODE=disabled and `wandb: off` each win over all else; then WANDB_MODE over the settings,
    and a sweep's trial (WANDB_SWEEP_ID) is online if nothing else is said.
    """
    spoken = environ.get("WANDB_MODE", "").strip().lower()
    asked = {"dryrun": "offline", "run": "online", "shared": "online"}.get(spoken, spoken)
    disabled = environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1", "yes", "on")
    if settings.wandb == "off" or asked == "disabled" or disabled:
        return None
    if asked in ("online", "offline"):
        return asked
    return settings.wandb or ("online" if environ.get("WANDB_SWEEP_ID") else None)


class WandbMirror:
    """Tells W&B in a thread of its own, so that the run waits only at its end, and only so long.

    Only the first thing that goes wrong is said; the rest would say the same.
    """

    def __init__(
        self, mode: str, arguments: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        self._mode, self._arguments = mode, dict(arguments)
        self._warn = warn
        self._init_seconds = _seconds("WANDB_INIT_TIMEOUT", INIT_SECONDS)
        self._finish_seconds = _seconds("WANDB_FINISH_TIMEOUT", FINISH_SECONDS)
        self._queue: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
        self._warned = False
        self._place: dict[str, str | None] = {"url": None, "folder": None}
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def record(self) -> dict[str, Any]:
        """Return mode, id, project, and address and folder once W&B has given them."""
        return {
            "mode": self._mode,
            "id": self._arguments["id"],
            "project": self._arguments["project"],
            **self._place,
        }

    def do(self, what: str, *arguments: Any) -> None:
        """Tell one thing, later and elsewhere."""
        self._queue.put((what, arguments))

    def finish(self, *, failed: bool) -> None:
        """End the copy; what W&B has not taken in time stays on disk for `wandb sync`."""
        self._queue.put(("finish", (1 if failed else 0,)))
        limit = self._init_seconds + self._finish_seconds + 10.0
        self._thread.join(limit)
        if self._thread.is_alive():
            self._trouble(f"it did not answer for {limit:.0f} seconds")

    def _work(self) -> None:
        try:
            run = self._begin()
        except Exception as error:
            self._trouble(_short(error))
            return
        with suppress(Exception):
            self._place = {"url": run.url, "folder": str(run.settings.sync_dir)}
        calls = _Calls(run)
        while True:
            what, arguments = self._queue.get()
            if what == "finish":
                break
            try:
                getattr(calls, what)(*arguments)
            except Exception as error:
                self._trouble(f"{what}: {_short(error)}")
        started = time.monotonic()
        try:
            run.finish(exit_code=arguments[0])
        except Exception as error:
            self._trouble(_short(error))
            return
        if self._mode == "online" and time.monotonic() - started >= self._finish_seconds:
            self._trouble("it did not take everything in time")

    def _begin(self) -> Any:
        for name, value in HIDDEN_VARIABLES.items():
            os.environ.setdefault(name, value)
        try:
            return self._init(self._mode)
        except Exception as error:
            if self._mode != "online":
                raise
            self._trouble(_short(error), "offline-run-*")
        # The attempt holds the run's id until its service has gone.
        import wandb

        with suppress(Exception):
            wandb.teardown()
        self._mode = "offline"
        return self._init(self._mode)

    def _init(self, mode: str) -> Any:
        import wandb

        wanted = {
            "init_timeout": self._init_seconds,
            "finish_timeout": self._finish_seconds,
            "silent": True,
            "console": "off",
            "reinit": "create_new",
            # Its own records hold the command line, the machine's user and git's remote address.
            "x_disable_meta": True,
            "x_save_requirements": False,
            "disable_git": True,
            "save_code": False,
            "disable_code": True,
            "x_disable_stats": mode == "offline",
            "x_graphql_retry_max": 4,
            "x_graphql_retry_wait_max_seconds": 5.0,
            "x_graphql_timeout_seconds": 15.0,
        }
        known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        arguments: dict[str, Any] = {**self._arguments, "mode": mode}
        return wandb.init(settings=wandb.Settings(**known), **arguments)

    def _trouble(self, reason: str, runs: str = "*run-*") -> None:
        if self._warned:
            return
        self._warned = True
        self._warn(
            f"W&B could not be told everything ({reason}); the run's folder has all of it, and "
            f"wandb sync {self._arguments['dir']}/wandb/{runs} uploads it later."
        )


class _Calls:
    """W&B's calls for what a run says; methods have the names and arguments of `RecordedRun`."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._defined: set[str] = set()
        self._no_answer = False

    def timings(self, seconds: Mapping[str, float]) -> None:
        self._run.summary.update({"seconds": dict(seconds)})

    def summary(self, metrics: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(metrics))

    def log(self, record: Mapping[str, Any]) -> None:
        values = {key: value for key, value in record.items() if value is not None}
        if "step" in values:
            self._define("step", hidden=True)
            for name in values.keys() - {"step"}:
                self._define(name, step_metric="step")
        self._run.log(values)

    def curve(self, name: str, points: Sequence[Mapping[str, Any]], x: str) -> None:
        axis = f"{name}/{x}"
        self._define(axis, hidden=True)
        self._define(f"{name}/*", step_metric=axis)
        for point in points:
            self._run.log({f"{name}/{k}": v for k, v in point.items() if v is not None})

    def table(self, name: str, frame: Any) -> None:
        """Log a table's first 10,000 rows; one without any is left out."""
        import pandas as pd
        import wandb

        data = frame if isinstance(frame, pd.DataFrame) else pd.DataFrame(list(frame))
        if data.empty or self._no_answer:
            return
        rows: list[Any] = [
            [_cell(value) for value in row] for row in data.head(MOST_ROWS).to_numpy(object)
        ]
        columns: list[Any] = [str(column) for column in data.columns]
        made = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._ask(lambda: self._run.log({f"tables/{name}": made}))

    def figure(self, name: str, figure: Any) -> None:
        import wandb

        if not isinstance(figure, str | Path):
            shown: Any = wandb.Plotly(figure)
        elif Path(figure).suffix.lower() in (".html", ".htm"):
            shown = wandb.Html(Path(figure).read_text(encoding="utf-8"), inject=False)
        else:
            shown = wandb.Image(str(figure))
        self._run.log({f"figures/{name}": shown})

    def artifact(self, name: str, path: Path, kind: str) -> None:
        """Log a file or a folder, without a copy on this disk."""
        import wandb

        if self._no_answer:
            return
        called = re.sub(r"[^A-Za-z0-9._-]", "-", f"{self._run.name or self._run.id}-{name}")
        made = wandb.Artifact(called[:128], kind)
        add = made.add_dir if path.is_dir() else made.add_file
        add(str(path), policy="immutable", skip_cache=True)
        self._ask(lambda: self._run.log_artifact(made))

    def _ask(self, call: Callable[[], Any]) -> None:
        # These calls ask the server first, and wait long when it is silent: once is enough.
        self._no_answer = True
        call()
        self._no_answer = False

    def _define(self, name: str, **how: Any) -> None:
        if name not in self._defined:
            self._defined.add(name)
            self._run.define_metric(name, **how)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return redact(value)
    if isinstance(value, float):
        return None if value != value else float(value)
    if hasattr(value, "tolist"):
        return _cell(value.tolist())
    try:
        return json.dumps(redact(value))
    except (TypeError, ValueError):
        return str(value)


def _init_arguments(
    settings: TrackingSettings, record: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    environ = os.environ
    in_sweep = bool(environ.get("WANDB_SWEEP_ID"))
    kept = {name: record.get(name) for name in _ENVIRONMENT}
    config = {**dict(record.get("config") or {}), "saesteer": {"kind": record["kind"], **kept}}
    tags = {*record.get("tags", ()), *filter(None, environ.get("WANDB_TAGS", "").split(","))}
    return {
        "project": settings.project or environ.get("WANDB_PROJECT") or "saesteer",
        "entity": settings.entity or environ.get("WANDB_ENTITY") or None,
        "group": record.get("group"),
        "tags": sorted(tag.strip()[:64] for tag in tags),
        "name": environ.get("WANDB_NAME") or str(record["name"]),
        # An agent names its trials itself.
        "id": (in_sweep and environ.get("WANDB_RUN_ID")) or str(record["id"]),
        "job_type": str(record["kind"]),
        "config": redact(config),
        "dir": environ.get("WANDB_DIR") or str(folder),
        "resume": "allow",
    }


def _has_login() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    # Asked for beforehand: wandb.init would ask on the terminal, and wait.
    from requests.utils import get_netrc_auth

    base = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    return get_netrc_auth(base) is not None


def _seconds(variable: str, default: float) -> float:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return default


def _short(error: Exception) -> str:
    return one_line(error) or type(error).__name__
