"""Numbers and names as a reader meets them, on a page and in a terminal alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

from saesteer.utils.text import spoken_list

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"


class Estimate(NamedTuple):
    """A number with its 95% interval, where there is one; a value of None was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


def known(value: Any) -> TypeGuard[float]:
    """Return whether something is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def show(value: Any, form: str = ".2f") -> str:
    """Return a number as text with a real minus sign; a dash for anything else."""
    if not known(value):
        return NOTHING
    text = format(value, form)
    # What rounds to zero has no sign to speak of.
    rounded = text if any(digit in text for digit in "123456789") else text.lstrip("+-")
    return rounded.replace("-", MINUS)


def between(low: Any, high: Any, form: str = ".2f") -> str:
    """Return an interval in words; nothing where it has no ends."""
    return f"{show(low, form)} to {show(high, form)}" if known(low) and known(high) else ""


def bracketed(interval: Sequence[float] | None, form: str = ".2f") -> str:
    """Return an interval in brackets, behind a space; nothing without one."""
    return f" ({between(interval[0], interval[1], form)})" if interval else ""


def spoken(name: Any) -> str:
    """Return a name of code or of a file as words."""
    return str(name).replace("_", " ")


def listing(names: Sequence[str], most: int = 4) -> str:
    """Return names as words, the last ones counted where there are many."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return spoken_list(names) if names else ""
