"""Strength: how much of a vector is added, always with a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from saesteer.utils.errors import SteeringError

if TYPE_CHECKING:
    from saesteer.steering.vector import SteeringVector

Unit = Literal["norm", "raw", "max_act"]
UNITS: tuple[Unit, ...] = get_args(Unit)

# A vector of one site, and the signed L2 length that is added of it.
Addition = tuple["SteeringVector", float]


def check_strength(value: object, name: str = "strength") -> float:
    """Return a strength, or a length of that name, as a float; refuse what is not finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SteeringError(f"{name} {value!r} is not a number; give a number such as 0.2.")
    number = float(value)
    if not math.isfinite(number):
        raise SteeringError(f"{name} {number} is not finite; give a number such as 0.2.")
    return number


def check_strengths(value: object) -> tuple[float, ...]:
    """Return one strength, or a sequence of at least one, as a tuple of floats."""
    if hasattr(value, "tolist"):
        # numpy and torch values, whose items are not Python numbers.
        value = cast(Any, value).tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return (check_strength(value),)
    if not value:
        raise SteeringError("strengths are an empty list; give at least one, such as 0.2.")
    return tuple(check_strength(item) for item in value)


def check_unit(value: object) -> Unit:
    """Return a unit's name; refuse one that does not exist."""
    if value not in UNITS:
        raise SteeringError(f"unit {value!r} is unknown; use one of {', '.join(UNITS)}.")
    return cast(Unit, value)


def parse(text: str) -> float:
    """Return the strength written in `text`, such as "-0.2".

    Raises:
        SteeringError: The text is not a finite number.

    Example:
        >>> parse("-0.2")
        -0.2
    """
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise SteeringError(
            f"strength {text!r} is not a number; give a number such as 0.2 or -0.2."
        ) from None
    return check_strength(number)


def to_raw(strength: float, unit: Unit, vector: SteeringVector) -> float:
    """Return the signed L2 length that a strength stands for.

    Args:
        strength: Negative steers the other way.
        unit: "norm", a multiple of the mean residual norm at the vector's site (special tokens
            left out); "raw", the L2 length itself; "max_act", a multiple of the length at which
            every feature of the vector is at its measured maximum activation.
        vector: The vector to be added.

    Raises:
        SteeringError: The strength or unit is invalid, or the vector does not carry the unit's
            measure.
    """
    number, known = check_strength(strength), check_unit(unit)
    if known == "raw":
        return number
    measure = vector.residual_norm if known == "norm" else vector.max_act
    if measure is None:
        field, ways = (
            ("residual_norm", "'raw'") if known == "norm" else ("max_act", "'norm' or 'raw'")
        )
        raise SteeringError(
            f"unit {known!r} needs {field}, which the vector {vector.name!r} does not carry; use "
            f"unit {ways}, or set it with dataclasses.replace(vector, {field}=...)."
        )
    return number * measure


def per_site(vector: SteeringVector, strength: float, unit: Unit) -> list[Addition]:
    """Return what a strength adds of a vector: its own piece, then its parts, each with its length.

    A part is added at the same multiple of its natural length as the vector itself.

    Raises:
        SteeringError: As in `to_raw`.
    """
    own, *parts = vector.pieces
    length = to_raw(strength, unit, vector)
    return [(own, length), *((part, length / vector.norm * part.norm) for part in parts)]
