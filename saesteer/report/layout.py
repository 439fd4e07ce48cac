"""What a report is laid out from: sections of figures, tables and texts, and tables' cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from saesteer.report.wording import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

Verdict: TypeAlias = Literal["good", "open", "bad"]


class Mark(NamedTuple):
    """A name with a dot of its colour, and a word below it."""

    text: str
    colour: str
    small: str = ""


class Bar(NamedTuple):
    """A number as a bar, from the middle to both sides, or from the left end where `one_sided`."""

    value: float | None
    full: float
    one_sided: bool = False


class Context(NamedTuple):
    """A text where a feature fires, cut around the token that it fires on."""

    before: str
    token: str
    after: str
    activation: float | None


class Described(NamedTuple):
    """What a feature stands for, with texts to unfold and a dashboard to ask for."""

    text: str
    contexts: Sequence[Context] = ()
    embed: str | None = None


Cell: TypeAlias = "bool | int | float | str | Estimate | Mark | Bar | Described | None"


class Column(NamedTuple):
    """A column of a table of records: its name, and the key or the function that fills it.

    Its form says how numbers are written, such as ".2f", and its hint what the name does not.
    """

    name: str
    value: str | Callable[[Any], Cell]
    form: str = ""
    hint: str = ""

    @classmethod
    def of(cls, words: str) -> Column:
        """Read "name", "name=key" or "name=key:form"; a key that is not named is the name."""
        words, _, form = words.partition(":")
        name, _, key = words.partition("=")
        return cls(name, key or name, form)


def estimate(
    name: str, low: str = "low", high: str = "high"
) -> Callable[[Mapping[str, Any]], Estimate]:
    """Return what takes a number with its interval out of a record."""
    return lambda record: Estimate(record[name], record[low], record[high])


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the page sorts them by a column that is clicked."""

    columns: Sequence[str]
    # Numbers stand right, None is a dash.
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    # For every row the address its first cell leads to, or "".
    links: Sequence[str] = ()
    # Closed until somebody opens it.
    folded: bool = False
    # How a column's numbers are written, such as ".2f"; to four digits if not named.
    forms: Mapping[str, str] = field(default_factory=dict)
    # What a column means, where its name does not say it all.
    hints: Mapping[str, str] = field(default_factory=dict)
    # The columns that the terminal shows, without any none; and the most rows.
    printed: Sequence[str] = ()
    most: int = 16
    # What to keep in mind, below it.
    note: str = ""

    @classmethod
    def of(
        cls,
        records: Iterable[Any],
        columns: Iterable[Column | str],
        caption: str = "",
        *,
        printed: bool | Sequence[str] = (),
        **more: Any,
    ) -> Table:
        """Return a table of records, a row for each; of a column as words see `Column.of`.

        `printed` are the columns that the terminal shows, or True for all.
        """
        made = [Column.of(one) if isinstance(one, str) else one for one in columns]
        names = [one.name for one in made]
        return cls(
            names,
            [
                [r[one.value] if isinstance(one.value, str) else one.value(r) for one in made]
                for r in records
            ],
            caption,
            forms={one.name: one.form for one in made if one.form},
            hints={one.name: one.hint for one in made if one.hint},
            printed=names if printed is True else printed or (),
            **more,
        )

    def right(self, column: int) -> bool:
        """Return whether a column stands right, as numbers do."""
        cells = [row[column] for row in self.rows]
        return any(
            isinstance(cell, Real | Estimate) and not isinstance(cell, bool) for cell in cells
        )

    def link(self, row: int) -> str:
        """Return where a row leads; addresses that could run something lead nowhere."""
        address = str(self.links[row] or "") if row < len(self.links) else ""
        scheme, colon, _ = address.partition(":")
        return address if not colon or scheme in ("http", "https") else ""


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when it is asked for."""

    # What its place on the page, its file and W&B call it.
    name: str
    # What it shows, for those who cannot see it.
    label: str
    draw: Callable[[], Drawing]
    # What to see in it.
    note: str = ""
    # Heatmaps that share a word here share the range of their colours.
    colours: str = ""


class Said(NamedTuple):
    """A text with a judge's reading of it, where one read it."""

    text: str
    judge: Bar | None = None


@dataclass(frozen=True)
class Texts:
    """Texts side by side, such as completions."""

    # What they answer or go on from.
    title: str
    # Under each heading named columns, each with its texts.
    rows: Mapping[str, Mapping[str, Sequence[Said]]]
    opened: bool = False
    # Whether the terminal shows them too.
    printed: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; with a title it is one of a file's, folded and letter by letter."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Choice:
    """Items of which one option's are shown; choices of one group change together."""

    group: str
    label: str
    options: Mapping[str, Sequence[Item]]


Item: TypeAlias = Figure | Table | Texts | Text | Choice


@dataclass(frozen=True)
class Section:
    """A part of a report: its heading, a sentence or two, its items, what to keep in mind."""

    title: str
    about: str = ""
    items: Sequence[Item] = ()
    note: str = ""


@dataclass(frozen=True)
class Remark:
    """One line with a verdict in front."""

    text: str
    verdict: Verdict


class Tile(NamedTuple):
    """One of the headline numbers: its name, the number, and what it is of."""

    name: str
    value: str
    about: str = ""
