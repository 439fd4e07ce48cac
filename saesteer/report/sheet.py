"""One self-contained page for any room: sections of figures and tables, offline, all escaped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesteer.report.frame import asset, embedded, environment, script_hash, slug, write_page

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        columns: The columns' names.
        rows: Cells; numbers are shown to four digits and stand right, None as a dash.
        caption: What the table says.
        links: For every row the address its first cell leads to, or "".
        folded: Whether it is closed until somebody opens it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    links: Sequence[str] = ()
    folded: bool = False

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str = "", **more: Any) -> Table:
        """Return a data frame's table."""
        columns = [str(name) for name in frame.columns]
        return cls(columns, frame.to_numpy(dtype=object).tolist(), caption, **more)

    def link(self, row: int) -> str:
        """Return where a row leads; addresses that could run something lead nowhere."""
        address = str(self.links[row]) if row < len(self.links) else ""
        scheme, colon, _ = address.partition(":")
        return address if not colon or scheme in ("http", "https") else ""


@dataclass(frozen=True)
class Drawing:
    """A figure with what it shows, for those who cannot see it and those who want to know."""

    figure: Figure
    label: str
    note: str = ""


@dataclass(frozen=True)
class Texts:
    """Texts side by side, such as completions: a title and named columns of text."""

    title: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One section.

    Attributes:
        title: Its heading, also in the page's bar.
        about: A sentence or two above it.
        items: Figures, tables and texts in order.
        note: What to keep in mind, below it.
    """

    title: str
    about: str = ""
    items: Sequence[Drawing | Table | Texts] = ()
    note: str = ""


@dataclass(frozen=True)
class Remark:
    """One line with a verdict in front."""

    text: str
    verdict: Literal["good", "open", "bad"]


@dataclass(frozen=True)
class Sheet:
    """A page.

    Attributes:
        kind: What kind of run it is of, such as "patching".
        title: The run's name.
        lead: What was found, in a sentence or two.
        facts: Model, seed and the like by name.
        remarks: What speaks for it, against it, and is open.
        tiles: Up to four headline numbers: name, number, remark.
        parts: The sections.
        source: The file that all numbers come from.
    """

    kind: str
    title: str
    lead: str
    facts: Mapping[str, object] = field(default_factory=dict)
    remarks: Sequence[Remark] = ()
    tiles: Sequence[tuple[str, str, str]] = ()
    parts: Sequence[Part] = ()
    source: str = "metrics.json"


def write_sheet(sheet: Sheet, path: str | os.PathLike[str]) -> Path:
    """Write a page whole or not at all.

    Args:
        sheet: What it shows.
        path: The file; its folder is made.

    Raises:
        OutputError: The file cannot be written.
    """
    return write_page(sheet_page(sheet), path)


def sheet_page(sheet: Sheet) -> str:
    """Return a page as HTML: it opens offline, asks nothing of the network, escapes every text."""
    figures: dict[str, str] = {}
    sections = []
    for number, part in enumerate(sheet.parts):
        items = []
        for place, item in enumerate(part.items):
            name = f"f{number}-{place}"
            if isinstance(item, Drawing):
                figures[name] = item.figure.to_json() or "{}"
            items.append({"kind": type(item).__name__, "name": name, "item": item})
        sections.append({"id": slug(f"{number}{part.title}"), "part": part, "items": items})
    scripts = {"page": asset("script.js")}
    if figures:
        from plotly.offline import get_plotlyjs

        scripts = {"plotly": get_plotlyjs(), **scripts}
    return (
        environment()
        .get_template("sheet.html")
        .render(
            sheet=sheet,
            sections=sections,
            style=asset("style.css"),
            scripts=scripts,
            script_hashes=[script_hash(script) for script in scripts.values()],
            figures=embedded(figures),
        )
    )
