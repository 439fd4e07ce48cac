"""The frame of every page: templates, assets, and texts that cannot break out of it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saesteer.report import reading
from saesteer.utils.files import write_atomic
from saesteer.utils.text import said

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = Path(__file__).parent / "template"


def write_page(page: str, path: str | os.PathLike[str]) -> Path:
    """Write a page whole or not at all.

    Args:
        page: Its HTML.
        path: The file; its folder is made.

    Raises:
        OutputError: The file cannot be written.
    """
    # A lone surrogate, which a text cut inside an emoji can hold, has no UTF-8.
    return write_atomic(path, page.encode("utf-8", "replace"))


def embedded(figures: Mapping[str, str]) -> str:
    """Return the figures as one JSON object that no text in it can break out of."""
    joined = ",".join(f"{json.dumps(name)}:{figure}" for name, figure in figures.items())
    return ("{" + joined + "}").replace("<", "\\u003c")


def asset(name: str) -> str:
    """Return a file that stands beside the templates."""
    return (TEMPLATE / name).read_text(encoding="utf-8")


def script_hash(script: str) -> str:
    """Return how the content security policy names a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def environment() -> Environment:
    """Return the templates, with every text escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        show=reading.show, share=reading.share, spoken=reading.spoken, said=said, slug=slug
    )
    return made


def slug(text: object) -> str:
    """Return an identifier for a name, of letters and digits."""
    return hashlib.sha1(str(text).encode("utf-8", "replace")).hexdigest()[:8]
