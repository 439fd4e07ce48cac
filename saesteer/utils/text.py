"""Texts made fit to show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def said(text: object) -> str:
    """Return text without the characters that HTML does not allow."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\N{REPLACEMENT CHARACTER}", str(text))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to say behind an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(names)})"
