"""What an experiment found, laid out once: the page, the terminal and W&B are made from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from saesteer.report.layout import Choice, Figure, Item, Remark, Section, Tile

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

    from saesteer.utils.terminal import Console


@dataclass(frozen=True)
class Report:
    """What an experiment found."""

    # What kind of experiment it is of, such as "patching", and its name.
    kind: str
    title: str
    # What was found, in a sentence or two.
    lead: str
    # Model, seed and the like by name.
    facts: Mapping[str, object] = field(default_factory=dict)
    # What speaks for it, against it, and is open.
    remarks: Sequence[Remark] = ()
    # Up to four headline numbers.
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()
    # What it is written to in the folder.
    page: str = "report.html"
    # The file that all numbers come from, and where else numbers lie in the folder.
    source: str = "metrics.json"
    beside: Sequence[str] = ()
    # What to type next; "{folder}" stands for the folder.
    commands: Sequence[str] = ()
    # A site whose pages may be shown within the page when somebody asks for one.
    frames: str | None = None

    def items(self) -> Iterator[Item]:
        """Yield all items of all sections, those of choices too."""
        waiting: list[Item] = [item for section in self.sections for item in section.items]
        while waiting:
            item = waiting.pop(0)
            if isinstance(item, Choice):
                waiting[:0] = [inner for items in item.options.values() for inner in items]
            yield item

    @cached_property
    def figures(self) -> dict[str, Drawing]:
        """The figures by name, drawn; those to be compared in the same colours."""
        from saesteer.report.plots import share_colours

        items = [item for item in self.items() if isinstance(item, Figure)]
        drawn = {item.name: item.draw() for item in items}
        for word in dict.fromkeys(item.colours for item in items if item.colours):
            share_colours([drawn[item.name] for item in items if item.colours == word])
        return drawn

    def to_html(self) -> str:
        """Return the page: it opens offline, asks nothing of the network, escapes every text."""
        from saesteer.report.page import page_of

        return page_of(self)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page whole or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        from saesteer.utils.files import write_atomic

        # A lone surrogate, which a text cut inside an emoji can hold, has no UTF-8.
        return write_atomic(path, self.to_html().encode("utf-8", "replace"))

    def print(self, console: Console, folder: Path | None = None) -> None:
        """Print the lead, the remarks and the first tables, and where everything is."""
        from saesteer.report.terminal import print_report

        print_report(self, console, folder)
