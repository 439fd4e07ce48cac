"""A report as one self-contained page: it opens offline and no text in it can break out."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.report.layout import Bar, Described, Mark
from saesteer.report.wording import NOTHING, Estimate, between, known, show
from saesteer.utils.text import said

if TYPE_CHECKING:
    from jinja2 import Environment

    from saesteer.report.layout import Cell
    from saesteer.report.report import Report

TEMPLATE = Path(__file__).parent / "template"


def page_of(report: Report) -> str:
    """Return a report's page as HTML."""
    figures = {name: figure.to_json() or "{}" for name, figure in report.figures.items()}
    scripts = [_asset("script.js")]
    if figures:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, get_plotlyjs())
    page = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            style=_asset("style.css"),
            scripts=scripts,
            script_hashes=[_script_hash(script) for script in scripts],
            figures=_embedded(figures),
        )
    )
    return page.lstrip()


def cell_text(cell: Cell, form: str = "") -> str:
    """Return a cell as words: whole numbers as they are, others to four digits if not told."""
    if isinstance(cell, Estimate):
        value, ends = show(cell.value, form or ".3f"), between(cell.low, cell.high, form or ".3f")
        return f"{value} ({ends})" if ends else value
    if isinstance(cell, Bar):
        return show(cell.value, "+.2f")
    if isinstance(cell, Mark | Described):
        return cell.text
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Real):
        return show(cell, form or ("" if isinstance(cell, Integral) else ".4g"))
    return NOTHING if cell is None or cell == "" else str(cell)


def _environment() -> Environment:
    """Return the templates, with every text escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(said=said, slug=_slug, show=show, stretch=_stretch, value=_value)
    made.globals.update(kind_of=_kind_of, text_of=cell_text, between=between)
    return made


def _kind_of(item: object) -> str:
    """Return the name that templates know an item or a cell by."""
    if isinstance(item, Real) and not isinstance(item, bool):
        return "number" if known(item) else "NoneType"
    return type(item).__name__


def _value(cell: Any) -> float | None:
    """Return the number that a cell is sorted by."""
    found = cell.value if isinstance(cell, Estimate | Bar) else cell
    return found if known(found) else None


def _stretch(bar: Bar) -> str:
    """Return the style of a bar: as long as its share of the full length, coloured by its sign."""
    if not known(bar.value):
        return ""
    share = min(1.0, abs(bar.value or 0.0) / (bar.full or 1.0))
    if bar.one_sided:
        return f"left:0;width:{100 * share:.1f}%"
    left = 50.0 if (bar.value or 0.0) >= 0 else 50.0 - 50 * share
    colour = "towards" if (bar.value or 0.0) >= 0 else "against"
    return f"left:{left:.1f}%;width:{50 * share:.1f}%;background:var(--{colour})"


def _embedded(figures: Mapping[str, str]) -> str:
    """Return the figures as one JSON object that no text in it can break out of."""
    joined = ",".join(f"{json.dumps(name)}:{figure}" for name, figure in figures.items())
    return ("{" + joined + "}").replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _script_hash(script: str) -> str:
    """Return how the content security policy names a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _slug(text: object) -> str:
    """Return an identifier for a name, of letters and digits."""
    return hashlib.sha1(str(text).encode("utf-8", "replace")).hexdigest()[:8]
