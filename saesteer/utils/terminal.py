"""The one place that prints to the terminal; whatever it prints is cleaned first."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from saesteer.utils.redaction import redact_text

# What a terminal would obey, but tab and newline; and halves of characters, which it cannot show.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def cleaned(text: object) -> str:
    """Return text without what a terminal would obey, and without known keys."""
    shown = str(text).replace("\r\n", "\n")
    return redact_text(_OBEYED.sub("\N{REPLACEMENT CHARACTER}", shown))


def say(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print text, on standard error if asked."""
    print(cleaned(text), file=sys.stderr if err else sys.stdout, end=end, flush=True)


def say_json(value: Any) -> None:
    """Print a value as JSON, in which what a terminal would obey is written as its number."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    say(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


class Console(RichConsole):
    """A console whose text is cleaned as it is rendered; rich's own colours stay."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Give the segments of what is printed."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else cleaned(text), style, control)
