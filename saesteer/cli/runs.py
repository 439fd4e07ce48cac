"""`saesteer runs`: list, show, compare, filter, export and annotate recorded runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from saesteer.tracking.store import RunStore
    from saesteer.tracking.stored_run import StoredRun

app = typer.Typer(no_args_is_help=True, help="Find recorded runs again, and hold them together.")
Root = Annotated[
    Path,
    typer.Option(
        envvar="SAESTEER_RUNS",
        help="The folder of runs; SAESTEER_STORE names a list of runs elsewhere.",
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
    found = _selected(_all(_store(root)), None, sort, desc)
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

    found = _selected(_all(_store(root)), conditions, sort, desc)
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

    found = _find(_store(root), run)
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
    from saesteer.utils.errors import DataError

    store = _store(root)
    found = [_find(store, name) for name in runs]
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
    from saesteer.tracking.export import export_runs

    found = _selected(_all(_store(root)), conditions, None, False)
    export_runs(found, target)
    typer.echo(f"wrote {len(found)} runs to {target}")


@app.command("note")
def note_command(run: Name, text: str, root: Root = Path("runs")) -> None:
    """Add a note to a run, with the time."""
    from saesteer.tracking.notes import append_note
    from saesteer.utils.errors import OutputError

    store = _store(root)
    found = _find(store, run)
    append_note(found.folder, text)
    try:
        store.put(found.folder)
    except OutputError as error:
        typer.echo(f"warning: {error}", err=True)
    typer.echo(f"noted in {found.folder}")


@app.command("rebuild")
def rebuild_command(
    roots: Annotated[
        list[Path] | None, typer.Argument(help="Folders to look in besides --root.")
    ] = None,
    root: Root = Path("runs"),
) -> None:
    """Make the list of runs again from their folders."""
    from saesteer.utils.errors import DataError

    for folder in roots or ():
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; give a folder of runs.")
    store = _store(root)
    found = store.rebuild(roots or ())
    typer.echo(f"{len(found)} runs are listed in {store.path}")


def _store(root: Path) -> RunStore:
    from saesteer.tracking.store import RunStore

    return RunStore(root)


def _all(store: RunStore) -> list[StoredRun]:
    from saesteer.utils.errors import OutputError

    try:
        return store.runs()
    except OutputError as error:
        # The folders are the truth, and reading them only takes longer.
        typer.echo(f"warning: {error}", err=True)
        return store.folders()


def _find(store: RunStore, name: str) -> StoredRun:
    from saesteer.tracking.store import find_among
    from saesteer.tracking.stored_run import read_run

    own = read_run(Path(name)) if name and "\0" not in name else None
    return own or find_among(_all(store), name)


def _selected(
    runs: list[StoredRun], conditions: Sequence[str] | None, sort: str | None, desc: bool
) -> list[StoredRun]:
    from saesteer.tracking.queries import filter_runs, parse_predicate, sort_runs

    found = filter_runs(runs, [parse_predicate(text) for text in conditions or ()])
    return sort_runs(found, sort, descending=desc) if sort else found


def _show(found: list[StoredRun], columns: Sequence[str] | None, limit: int, as_json: bool) -> None:
    from saesteer.cli.show import console
    from saesteer.cli.show_runs import show_runs

    if as_json:
        listed: list[dict[str, Any]] = [run.as_dict() for run in found[: limit or None]]
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
    else:
        show_runs(found, console(), columns=columns or (), limit=limit)
