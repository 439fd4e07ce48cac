"""What `saesteer runs` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from saesteer.cli.show import heading, table
from saesteer.tracking.queries import MISSING, check_fields, field_of, shown, side_by_side
from saesteer.utils.values import flatten

if TYPE_CHECKING:
    from rich.console import Console

    from saesteer.tracking import Run

HEADLINE = "metrics.effect"
LONGEST = 60


def show_runs(
    runs: Sequence[Run], out: Console, *, columns: Sequence[str] = (), limit: int = 20
) -> None:
    """Print runs, one a line.

    Raises:
        ConfigError: No run has a column.
    """
    listed = [run.as_dict() for run in runs]
    check_fields(listed, columns)
    if not columns and any(_number(field_of(values, HEADLINE)) for values in listed):
        columns = (HEADLINE,)
    names = [column.rpartition(".")[2] for column in columns]
    made = table("id", "kind", "name", "status", "started", ("took", "right"), *names)
    for values in listed[: limit or None]:
        made.add_row(
            values["id"],
            values["kind"],
            Text(shown(values["name"])),
            _status(values["status"]),
            _when(values["started"]),
            _took(values["seconds"]),
            *(Text(_short(field_of(values, column))) for column in columns),
        )
    made.columns[0].no_wrap = True
    made.columns[4].no_wrap = True
    out.print(made)
    if limit and len(runs) > limit:
        out.print(f"... and {len(runs) - limit} more; --limit 0 shows all")


def show_run(run: Run, out: Console) -> None:
    """Print all that is known of a run."""
    facts = {
        "run": f"{run.id}, {run.kind} {run.name}",
        "status": run.status + (f" in stage {run.record['stage']}" if _in_stage(run) else ""),
        "error": run.error,
        "folder": str(run.folder),
        "started": _when(run.started),
        "took": _took(run.seconds),
        "tags": ", ".join(run.tags),
        "group": run.group,
        "part of": run.parent,
        "commit": run.commit,
        "W&B": _wandb(run.record.get("wandb")),
    }
    _fields(out, {key: value for key, value in facts.items() if value})
    for title, values in (
        ("Settings", run.config),
        ("Metrics", run.metrics),
        ("Seconds", run.stages),
        ("Files", run.record.get("artifacts") or {}),
        ("Versions", run.versions),
    ):
        if values:
            heading(out, title)
            _fields(out, {key: shown(value) for key, value in flatten(values).items()})
    if run.notes:
        heading(out, "Notes")
    for note in run.notes:
        parts = {key: value for key, value in note.items() if key not in ("time", "text")}
        words = [str(note["text"])] if "text" in note else []
        words += [f"{key}: {shown(value)}" for key, value in parts.items()]
        out.print(Text(f"{_when(note.get('time'))}  {'; '.join(words)}"))


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what runs differ in and what they found, as JSON values; a missing one is left out."""
    ids = [run.id for run in runs]

    def named(rows: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {i: v for i, v in zip(ids, values, strict=True) if v is not MISSING}
            for name, values in rows.items()
        }

    return {
        "runs": {run.id: {"name": run.name, "folder": str(run.folder)} for run in runs},
        "settings": named(_settings(runs)),
        "metrics": named(side_by_side([run.metrics for run in runs])),
    }


def show_comparison(runs: Sequence[Run], out: Console) -> None:
    """Print the settings in which runs differ, and their metrics side by side."""
    facts = {"name": "name", "kind": "kind", "status": "status", "commit": "commit"}
    made = _side_by_side(runs, {n: [getattr(r, f) for r in runs] for n, f in facts.items()})
    out.print(made)
    settings = _settings(runs)
    heading(out, "Settings that differ" if settings else "The settings are the same")
    if settings:
        out.print(_side_by_side(runs, settings))
    metrics = side_by_side([run.metrics for run in runs])
    if metrics:
        heading(out, "Metrics")
        out.print(_side_by_side(runs, metrics))


def _settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    return side_by_side([run.config for run in runs], differing=True)


def _side_by_side(runs: Sequence[Run], rows: Mapping[str, list[Any]]) -> Table:
    made = table("", *(run.id for run in runs))
    for name, values in rows.items():
        made.add_row(Text(name), *(Text(_short(value)) for value in values))
    return made


def _fields(out: Console, rows: Mapping[str, Any]) -> None:
    made = table("", "")
    made.show_header = False
    for name, value in rows.items():
        made.add_row(Text(name), Text(str(value)))
    out.print(made)


def _status(status: str) -> Text:
    style = {"failed": "red", "killed": "red", "stopped": "yellow", "running": "cyan"}
    return Text(status, style=style.get(status, ""))


def _in_stage(run: Run) -> bool:
    return run.status in ("running", "killed") and bool(run.record.get("stage"))


def _short(value: Any) -> str:
    text = " ".join(shown(value).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _when(text: object) -> str:
    return str(text or "")[:16].replace("T", " ")


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def _wandb(record: object) -> str | None:
    if not isinstance(record, Mapping):
        return None
    return str(record.get("url") or record.get("folder") or record.get("mode"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
