"""What the terminal shows of a report, and of plans: tables that fit 100 columns."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid
from rich.text import Text

from saesteer.report.layout import Section, Table, Texts
from saesteer.report.page import cell_text
from saesteer.utils.terminal import Console

if TYPE_CHECKING:
    from saesteer.report.layout import Item
    from saesteer.report.report import Report

WIDTH = 100
MOST_COLUMNS, LONGEST = 3, 40
MARKS = {"good": "+", "open": "?", "bad": "-"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def console() -> Console:
    """Return a console on standard output, at most 100 columns wide, that prints what it gets."""
    found = Console()
    width = min(found.width, WIDTH) if found.is_terminal else WIDTH
    # Paths and descriptions hold brackets, which are no markup.
    return Console(width=width, markup=False, highlight=False)


def one_line(text: object) -> str:
    """Return a text as one line, without characters that a terminal would obey."""
    return " ".join(_CONTROL.sub(" ", str(text)).split())


def heading(out: Console, text: str) -> None:
    """Print a heading with a line above it."""
    out.print()
    out.print(Text(one_line(text), style="bold"))


def grid(*columns: str | tuple[str, str]) -> Grid:
    """Return an empty table; a column is a name, or a name and "right" for numbers on one line."""
    made = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for column in columns:
        name, side = (column, "left") if isinstance(column, str) else column
        if side == "right":
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    return made


def print_fields(out: Console, fields: Mapping[str, object]) -> None:
    """Print names with what they are, a line each."""
    made = grid("", "")
    made.show_header = False
    for name, value in fields.items():
        made.add_row(name, Text(one_line(value)))
    out.print(made)


def print_table(out: Console, table: Table, where: str = "the report") -> None:
    """Print a table's first rows in the columns that it names for the terminal.

    The others are said to be in `where`.
    """
    shown = [list(table.columns).index(name) for name in table.printed or table.columns]
    rows = table.rows[: table.most]
    made = grid(*((table.columns[at], "right" if table.right(at) else "left") for at in shown))
    for row in rows:
        cells = (cell_text(row[at], table.forms.get(table.columns[at], "")) for at in shown)
        made.add_row(*(Text(one_line(cell)) for cell in cells))
    out.print(made)
    if len(table.rows) > len(rows):
        out.print(f"... and {len(table.rows) - len(rows)} more in {where}")
    for at, row in enumerate(rows):
        # On a line of its own that is never broken.
        if link := table.link(at):
            out.print(f"{one_line(cell_text(row[0]))[:LONGEST]}: {link}", soft_wrap=True)


def print_texts(out: Console, texts: Texts) -> None:
    """Print texts, up to three columns side by side, more below each other."""
    heading(out, f"“{one_line(texts.title)}”")
    for name, columns in texts.rows.items():
        if name:
            out.print(Text(one_line(name)))
        said = {title: [one_line(one.text) for one in own] for title, own in columns.items()}
        if len(said) > MOST_COLUMNS:
            for title, own in said.items():
                out.print(Text(title, style="dim"))
                for text in own:
                    out.print(Text(text))
            continue
        made = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for title in said:
            made.add_column(title, ratio=1, overflow="fold")
        for place in range(max(map(len, said.values()), default=0)):
            cells = (own[place] if place < len(own) else "" for own in said.values())
            made.add_row(*(Text(cell) for cell in cells))
        out.print(made)


def print_report(report: Report, out: Console, folder: Path | None = None) -> None:
    """Print the lead, the remarks and the first tables, and where everything is."""
    heading(out, report.lead)
    for remark in report.remarks:
        made = Grid.grid(padding=(0, 1))
        made.add_row(" ", MARKS[remark.verdict], Text(one_line(remark.text)))
        out.print(made)
    for section in report.sections:
        _print_section(out, section)
    if folder is None:
        return
    # Paths and commands are for copying, so they are never broken over lines.
    out.print()
    out.print(f"Report: {folder / report.page}", soft_wrap=True)
    places = [str(folder / name) for name in (report.source, *report.beside)]
    out.print(f"Numbers: {', '.join(places)}", soft_wrap=True)
    if report.commands:
        out.print("Next:")
    for command in report.commands:
        line = command.replace("{folder}", shlex.quote(str(folder)))
        out.print(f"  {line}", soft_wrap=True)


def _print_section(out: Console, section: Section) -> None:
    shown: Sequence[Item] = [i for i in section.items if getattr(i, "printed", None)]
    if any(isinstance(item, Table) for item in shown):
        heading(out, section.title)
    for item in shown:
        if isinstance(item, Table):
            print_table(out, item)
            if item.note:
                out.print(Text(one_line(item.note)))
        elif isinstance(item, Texts):
            print_texts(out, item)


def show_plan(fields: Mapping[str, Any], folder: object, tables: Iterable[Table] = ()) -> None:
    """Print what a command would do and where to, for every --dry-run."""
    out = console()
    print_fields(out, fields)
    for table in tables:
        print_table(out, table)
    out.print(f"Would write to {folder}", soft_wrap=True)
    out.print("Nothing was loaded or written.")
