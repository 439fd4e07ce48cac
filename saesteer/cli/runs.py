"""`saesteer runs`: list, show, compare, filter, export and annotate recorded runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.cli.options import AsJson
from saesteer.utils.terminal import say, say_json

if TYPE_CHECKING:
    from rich.table import Table

    from saesteer.tracking import Run

app = typer.Typer(no_args_is_help=True, help="Find recorded runs again, and hold them together.")
Root = Annotated[
    Path,
    typer.Option(
        envvar="SAESTEER_RUNS", help="The folder of runs, or one that holds several of them."
    ),
]
Conditions = Annotated[
    list[str] | None,
    typer.Argument(help="Such as status=finished 'metrics.effect>0.1' tags~persona."),
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="A field to show besides; may be repeated.")
]
SortField = Annotated[str | None, typer.Option("--sort", help="The field to sort by.")]
Descending = Annotated[bool, typer.Option("--desc", help="Largest first.")]
Limit = Annotated[int, typer.Option(min=0, help="The most runs to show; 0 for all.")]
Name = Annotated[str, typer.Argument(help="A run's id, the beginning of one, or its folder.")]
HEADLINE = "metrics.effect"
LONGEST = 60
STYLES = {"failed": "red", "killed": "red", "stopped": "yellow", "running": "cyan"}


@app.command("list")
def list_command(
    root: Root = Path("runs"),
    column: Columns = None,
    sort: SortField = None,
    desc: Descending = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs, the latest first."""
    found = _selected(root, None, sort, desc)
    if not found:
        say(f"No run is recorded in {root}; saesteer run records one, or give --root.")
        return
    _show(found, column, limit, as_json)


@app.command("filter")
def filter_command(
    conditions: Conditions = None,
    root: Root = Path("runs"),
    column: Columns = None,
    sort: SortField = None,
    desc: Descending = False,
    limit: Limit = 20,
    by: Annotated[
        list[str] | None, typer.Option(help="Group by this field; may be repeated.")
    ] = None,
    of: Annotated[
        list[str] | None, typer.Option(help="Aggregate this field of numbers; may be repeated.")
    ] = None,
    with_: Annotated[
        str, typer.Option("--with", help="Aggregates: count,mean,median,std,min,max.")
    ] = "count,mean,std",
    as_json: AsJson = False,
) -> None:
    """List the runs that meet conditions, or aggregate them to a markdown table.

    Conditions: field and value around = != < <= > >= ~ (contains) !~, 'field in a,b', 'field not in
    a,b', 'field exists', 'field missing'. Fields nest: config.model.name, metrics.effect. Several
    are all met; one may hold and, or, not and brackets.
    """
    from saesteer.tracking.queries import aggregate, markdown_table

    found = _selected(root, conditions, sort, desc)
    if by or of:
        kinds = [kind.strip() for kind in with_.split(",") if kind.strip()]
        rows = aggregate(found, of or (), by=by or (), kinds=kinds)
        say(json.dumps(rows, indent=2) if as_json else markdown_table(rows))
    elif found or as_json:
        _show(found, column, limit, as_json)
    else:
        say("No run meets these conditions.")


@app.command("show")
def show_command(run: Name, root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """Show all that is known of a run."""
    from saesteer.tracking import find_run

    found = find_run(root, run)
    if as_json:
        _print_json(found.as_dict())
    else:
        _show_run(found)


@app.command("compare")
def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more: ids or folders.")],
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show the settings in which runs differ, and their metrics side by side."""
    from saesteer.tracking import find_run
    from saesteer.tracking.queries import MISSING, side_by_side
    from saesteer.utils.errors import DataError

    found = [find_run(root, name) for name in runs]
    if len({run.folder.resolve() for run in found}) < 2:
        raise DataError("one run has nothing to be compared with; give two runs or more.")
    settings = side_by_side([run.config for run in found], differing=True)
    metrics = side_by_side([run.metrics for run in found])
    if not as_json:
        _show_comparison(found, settings, metrics)
        return
    ids = [run.id for run in found]

    def named(rows: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {i: v for i, v in zip(ids, values, strict=True) if v is not MISSING}
            for name, values in rows.items()
        }

    about = {run.id: {"name": run.name, "folder": str(run.folder)} for run in found}
    _print_json({"runs": about, "settings": named(settings), "metrics": named(metrics)})


@app.command("export")
def export_command(
    target: Annotated[Path, typer.Argument(help="The file to write: .csv, .json or .parquet.")],
    conditions: Conditions = None,
    root: Root = Path("runs"),
) -> None:
    """Write runs to a table, one line for each; nested fields become columns with dots."""
    from saesteer.tracking.runs import export_runs

    found = _selected(root, conditions)
    export_runs(found, target)
    say(f"wrote {len(found)} runs to {target}")


@app.command("note")
def note_command(run: Name, text: str, root: Root = Path("runs")) -> None:
    """Add a note to a run, with the time."""
    from saesteer.tracking import add_note, find_run

    found = find_run(root, run)
    add_note(found.folder, text)
    say(f"noted in {found.folder}")


@app.command("rebuild", hidden=True)
def rebuild_command(
    roots: Annotated[list[Path] | None, typer.Argument()] = None, root: Root = Path("runs")
) -> None:
    """Say that there is nothing to rebuild any more."""
    say("There is no list to rebuild: runs are listed from their folders each time.")


def _selected(
    root: Path, conditions: Sequence[str] | None, sort: str | None = None, desc: bool = False
) -> list[Run]:
    from saesteer.tracking import list_runs
    from saesteer.tracking.queries import filter_runs, sort_runs

    found = filter_runs(list_runs(root), conditions or ())
    return sort_runs(found, sort, descending=desc) if sort else found


def _print_json(value: Any) -> None:
    say_json(value)


def _show(runs: list[Run], columns: Sequence[str] | None, limit: int, as_json: bool) -> None:
    """Print runs, one a line."""
    from rich.text import Text

    from saesteer.report.terminal import console, grid
    from saesteer.tracking.queries import check_fields, field_of, shown

    listed = [run.as_dict() for run in runs]
    if as_json:
        _print_json(listed[: limit or None])
        return
    columns = columns or ()
    check_fields(listed, columns)
    if not columns and any(isinstance(field_of(v, HEADLINE), int | float) for v in listed):
        columns = (HEADLINE,)
    names = [column.rpartition(".")[2] for column in columns]
    made = grid("id", "kind", "name", "status", "started", ("took", "right"), *names)
    for values in listed[: limit or None]:
        made.add_row(
            values["id"],
            values["kind"],
            Text(shown(values["name"])),
            Text(values["status"], style=STYLES.get(values["status"], "")),
            _when(values["started"]),
            _took(values["seconds"]),
            *(Text(_short(field_of(values, column))) for column in columns),
        )
    made.columns[0].no_wrap = made.columns[4].no_wrap = True
    out = console()
    out.print(made)
    if limit and len(runs) > limit:
        out.print(f"... and {len(runs) - limit} more; --limit 0 shows all")


def _show_run(run: Run) -> None:
    from rich.text import Text

    from saesteer.report.terminal import console, heading, print_fields
    from saesteer.tracking.queries import shown
    from saesteer.utils.values import flatten

    out, stage, copy = console(), run.record.get("stage"), run.record.get("wandb")
    in_stage = stage if run.status in ("running", "killed") else None
    places = (copy.get("url"), copy.get("folder"), copy.get("mode")) if copy else ()
    facts = {
        "run": f"{run.id}, {run.kind} {run.name}",
        "status": run.status + (f" in stage {in_stage}" if in_stage else ""),
        "error": run.error,
        "folder": str(run.folder),
        "started": _when(run.started),
        "took": _took(run.seconds),
        "tags": ", ".join(run.tags),
        "group": run.group,
        "part of": run.parent,
        "commit": run.commit,
        "W&B": next(filter(None, places), None),
    }
    print_fields(out, {key: value for key, value in facts.items() if value})
    for title, values in (
        ("Settings", run.config),
        ("Metrics", run.metrics),
        ("Seconds", run.stages),
        ("Files", run.record.get("artifacts") or {}),
        ("Versions", run.versions),
    ):
        if values:
            heading(out, title)
            print_fields(out, {key: shown(value) for key, value in flatten(values).items()})
    if run.notes:
        heading(out, "Notes")
    for note in run.notes:
        parts = {key: value for key, value in note.items() if key not in ("time", "text")}
        words = [str(note["text"])] if "text" in note else []
        words += [f"{key}: {shown(value)}" for key, value in parts.items()]
        out.print(Text(f"{_when(note.get('time'))}  {'; '.join(words)}"))


def _show_comparison(
    runs: Sequence[Run], settings: Mapping[str, list[Any]], metrics: Mapping[str, list[Any]]
) -> None:
    from saesteer.report.terminal import console, heading

    out = console()
    facts = ("name", "kind", "status", "commit")
    out.print(_beside(runs, {name: [getattr(run, name) for run in runs] for name in facts}))
    heading(out, "Settings that differ" if settings else "The settings are the same")
    if settings:
        out.print(_beside(runs, settings))
    if metrics:
        heading(out, "Metrics")
        out.print(_beside(runs, metrics))


def _beside(runs: Sequence[Run], rows: Mapping[str, list[Any]]) -> Table:
    from rich.text import Text

    from saesteer.report.terminal import grid

    made = grid("", *(run.id for run in runs))
    for name, values in rows.items():
        made.add_row(Text(name), *(Text(_short(value)) for value in values))
    return made


def _short(value: Any) -> str:
    from saesteer.tracking.queries import shown

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
