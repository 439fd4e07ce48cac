"""`saesteer runs`: list, show, compare, filter, export and annotate recorded runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
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


@app.command("list")
def list_command(
    root: Root = Path("runs"),
    column: Columns = None,
    sort: SortField = None,
    desc: Descending = False,
    limit: Limit = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs, the latest first."""
    found = _selected(root, None, sort, desc)
    if not found:
        typer.echo(f"No run is recorded in {root}; saesteer run records one, or give --root.")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        typer.echo(json.dumps(rows, indent=2) if as_json else markdown_table(rows))
    elif found or as_json:
        _show(found, column, limit, as_json)
    else:
        typer.echo("No run meets these conditions.")


@app.command("show")
def show_command(
    run: Name,
    root: Root = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show all that is known of a run."""
    from saesteer.cli.show import console
    from saesteer.cli.show_runs import show_run
    from saesteer.tracking import find_run

    found = find_run(root, run)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        show_run(found, console())


@app.command("compare")
def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more: ids or folders.")],
    root: Root = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the settings in which runs differ, and their metrics side by side."""
    from saesteer.cli.show import console
    from saesteer.cli.show_runs import comparison, show_comparison
    from saesteer.tracking import find_run
    from saesteer.utils.errors import DataError

    found = [find_run(root, name) for name in runs]
    if len({run.folder.resolve() for run in found}) < 2:
        raise DataError("one run has nothing to be compared with; give two runs or more.")
    if as_json:
        typer.echo(json.dumps(comparison(found), indent=2, ensure_ascii=False))
    else:
        show_comparison(found, console())


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
    typer.echo(f"wrote {len(found)} runs to {target}")


@app.command("note")
def note_command(run: Name, text: str, root: Root = Path("runs")) -> None:
    """Add a note to a run, with the time."""
    from saesteer.tracking import add_note, find_run

    found = find_run(root, run)
    add_note(found.folder, text)
    typer.echo(f"noted in {found.folder}")


@app.command("rebuild", hidden=True)
def rebuild_command(
    roots: Annotated[list[Path] | None, typer.Argument()] = None, root: Root = Path("runs")
) -> None:
    """Say that there is nothing to rebuild any more."""
    typer.echo("There is no list to rebuild: runs are listed from their folders each time.")


def _selected(
    root: Path, conditions: Sequence[str] | None, sort: str | None = None, desc: bool = False
) -> list[Run]:
    from saesteer.tracking import list_runs
    from saesteer.tracking.queries import filter_runs, sort_runs

    found = filter_runs(list_runs(root), conditions or ())
    return sort_runs(found, sort, descending=desc) if sort else found


def _show(found: list[Run], columns: Sequence[str] | None, limit: int, as_json: bool) -> None:
    from saesteer.cli.show import console
    from saesteer.cli.show_runs import show_runs

    if as_json:
        listed = [run.as_dict() for run in found[: limit or None]]
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
    else:
        show_runs(found, console(), columns=columns or (), limit=limit)
