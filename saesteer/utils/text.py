"""Texts made fit to show: in a sentence, on one line, on a page."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

LONGEST_NAME = 200


def said(text: object) -> str:
    """Return text without the characters that HTML does not allow."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\N{REPLACEMENT CHARACTER}", str(text))


def one_line(text: object, limit: int | None = 200) -> str:
    """Return text on one line, cut to `limit` characters, such as a library's error."""
    return " ".join(str(text).split())[:limit]


def library_said(error: object, limit: int = 200) -> str:
    """Return a library's error on one line, without torch's advice to load code unsafely."""
    text = one_line(error, None)
    if re.search("weights[ _]only", text, re.IGNORECASE):
        return (
            "its weights are pickled and hold more than tensors, which could run code; only "
            "safetensors, or pickled tensors alone, are read"
        )
    return text[:limit]


def shorten(value: object, limit: int = 40) -> str:
    """Quote a value for a message, cut to `limit` characters and kept on one line."""
    if isinstance(value, str):
        return repr(value if len(value) <= limit else f"{value[:limit]}...")
    try:
        text = repr(value)
    # Nested without end, or a number of too many digits.
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


def spoken_list(words: Sequence[str]) -> str:
    """Join words as in a sentence: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def spoken_bytes(count: int) -> str:
    """Say a number of bytes in the largest unit of which there is one: "12.3 kB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def near_names(word: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names closest to a word, closest first.

    Comparing takes the square of their lengths, so what is too long for a name is near to none.
    """
    if len(word) > LONGEST_NAME:
        return []
    short = [name for name in known if len(name) <= LONGEST_NAME]
    return difflib.get_close_matches(word, short, n=most, cutoff=cutoff)


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return a hint in brackets with the closest known word, or nothing when none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = near_names(word.strip().lower(), by_lower, cutoff=cutoff)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to say behind an unknown name: the nearest known one, or all of them."""
    names = list(known)
    return did_you_mean(name, names, cutoff=0.6) or f" (known: {', '.join(names) or 'none'})"
