"""Asking a list of runs: conditions on nested fields, sorting, aggregates and differences."""

from __future__ import annotations

import math
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from saesteer.tracking.runs import Run
from saesteer.utils.errors import ConfigError
from saesteer.utils.text import did_you_mean
from saesteer.utils.values import flatten

Values = Mapping[str, Any]
Holds = Callable[[Values], bool]
MISSING = object()
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_COMPARISON = re.compile(
    # Longest first, so that >= is not read as > and a value that begins with =.
    r"(?P<field>.*?)(?:\s*(?P<sign>!=|>=|<=|!~|=|>|<|~)"
    r"|\s+(?P<word>not in|in|exists|missing)\b)(?P<value>.*)",
    re.DOTALL,
)


def filter_runs(runs: Iterable[Run], conditions: Sequence[str]) -> list[Run]:
    """Return the runs that meet every condition, in their order.

    Args:
        runs: The runs.
        conditions: Such as `metrics.effect>0.1` or `kind=run and (tags~a or not tags exists)`.
            null is no value, quoted "null" the word; `exists` and `missing` stand alone behind the
            field. `and` binds before `or`; a value that holds one of these words is quoted.

    Raises:
        ConfigError: A condition has no operator, no field or no value, or a field is in no run.
    """
    named: list[str] = []
    parsed = [_condition(text, named) for text in conditions]
    listed = [(run, run.as_dict()) for run in runs]
    check_fields([values for _, values in listed], named)
    return [run for run, values in listed if all(holds(values) for holds in parsed)]


def _condition(text: str, named: list[str]) -> Holds:
    """Return what tells whether a run as a mapping meets a condition; add the fields it names."""
    text = text.strip()
    for word, join in (("or", any), ("and", all)):
        parts = [_condition(part, named) for part in _split(text, word)]
        if parts:
            return partial(_joined, parts, join)
    if text.startswith(("not ", "not(")):
        inner = _condition(text[3:], named)
        return lambda run: not inner(run)
    if text.startswith("(") and text.endswith(")"):
        return _condition(text[1:-1], named)
    return _comparison(text, named)


def _joined(parts: Sequence[Holds], join: Callable[[Iterable[bool]], bool], run: Values) -> bool:
    return join(holds(run) for holds in parts)


def _split(text: str, word: str) -> list[str]:
    """Split at a word that stands in no quotes and no brackets; nothing where it does not."""
    bare = _QUOTED.sub(lambda quoted: "_" * len(quoted[0]), text)
    places, depth = [], 0
    for found in re.finditer(rf"[()]|(?<=[\s)]){word}(?=[\s(]|$)", bare):
        if found[0] == word and depth == 0:
            places.append(found.span())
        depth += {"(": 1, ")": -1}.get(found[0], 0)
    starts, ends = [0, *(end for _, end in places)], [*(start for start, _ in places), None]
    return [text[s:e] for s, e in zip(starts, ends, strict=True)] if places else []


def _comparison(text: str, named: list[str]) -> Holds:
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"filter {text!r} has no operator; write such as metrics.effect>0.1, tags~persona or "
            "'metrics.effect exists' (operators: != >= <= !~ = > < ~ in exists missing), and "
            "quote a value that holds the words and, or."
        )
    field, sign = found["field"].strip(), found["sign"] or found["word"]
    rest = found["value"].strip()
    if not field:
        raise ConfigError(f"filter {text!r} names no field; write such as status=finished.")
    if sign in ("exists", "missing"):
        if rest:
            raise ConfigError(f"filter {text!r}: nothing may stand behind {sign}; remove it.")
        return lambda run: (field_of(run, field) is not MISSING) == (sign == "exists")
    words = rest.strip("()[] ").split(",") if found["word"] else [rest]
    values = [_value(word.strip()) for word in words if word.strip()]
    if not values:
        raise ConfigError(
            f"filter {text!r} names no value; write null for no value, or such as kind in "
            "run,compare."
        )
    negated = sign in ("!=", "!~", "not in")
    compare = _COMPARISONS[sign.removeprefix("!").removeprefix("not ")]

    def holds(run: Values) -> bool:
        there = field_of(run, field)
        if there is MISSING:
            return negated
        return any(compare(there, value) for value in values) != negated

    named.append(field)
    return holds


def _value(word: str) -> str | None:
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    return None if word in ("null", "None") else word


def sort_runs(runs: Sequence[Run], field: str, *, descending: bool = False) -> list[Run]:
    """Return runs in order of a field; runs without it, or with null, come last.

    Raises:
        ConfigError: No run has the field.
    """
    listed = [run.as_dict() for run in runs]
    check_fields(listed, [field])
    found = [(field_of(values, field), run) for values, run in zip(listed, runs, strict=True)]
    full = [pair for pair in found if pair[0] not in (MISSING, None)]
    full.sort(key=lambda pair: _sort_key(pair[0]), reverse=descending)
    return [run for _, run in full] + [run for value, run in found if value in (MISSING, None)]


def aggregate(
    runs: Sequence[Run],
    fields: Sequence[str],
    *,
    by: Sequence[str] = (),
    kinds: Sequence[str] = ("count", "mean", "std"),
) -> list[dict[str, Any]]:
    """Return one row for each group of runs: its size, and aggregates of fields.

    Values that are no finite number are left out, and `count` says how many remain. Kinds are
    count, mean, median, std (over n - 1), min and max.

    Raises:
        ConfigError: A kind is unknown, or no run has a field.
    """
    for kind in kinds:
        if kind not in _AGGREGATES:
            raise ConfigError(f"aggregate {kind!r} is unknown; use {', '.join(_AGGREGATES)}.")
    listed = [run.as_dict() for run in runs]
    check_fields(listed, [*fields, *by])
    groups: dict[tuple[str, ...], list[Values]] = {}
    for values in listed:
        groups.setdefault(tuple(shown(field_of(values, f)) for f in by), []).append(values)
    rows = []
    for key, group in sorted(groups.items(), key=lambda item: item[0]):
        row: dict[str, Any] = {**dict(zip(by, key, strict=True)), "runs": len(group)}
        for field in fields:
            found = [_own_number(field_of(values, field)) for values in group]
            numbers = [number for number in found if number == number]
            for kind in kinds:
                compute, least = _AGGREGATES[kind]
                row[f"{kind} {field}"] = compute(numbers) if len(numbers) >= least else None
        rows.append(row)
    return rows


def side_by_side(settings: Sequence[Values], *, differing: bool = False) -> dict[str, list[Any]]:
    """Return every nested field with the value of each mapping, `MISSING` where one lacks it.

    With `differing`, only the fields in which they differ.
    """
    flat = [flatten(one) for one in settings]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = {name: [one.get(name, MISSING) for one in flat] for name in names}
    return {
        name: row
        for name, row in rows.items()
        if not differing or any(value != row[0] for value in row)
    }


def field_of(values: Values, field: str) -> Any:
    """Return a nested field; `MISSING` where there is none. Keys may hold dots themselves."""
    if field in values:
        return values[field]
    parts = field.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        inner = values.get(".".join(parts[:cut]))
        if isinstance(inner, Mapping):
            found = field_of(inner, ".".join(parts[cut:]))
            if found is not MISSING:
                return found
    return MISSING


def check_fields(runs: Sequence[Values], fields: Sequence[str]) -> None:
    """Refuse a field that none of the runs has.

    Raises:
        ConfigError: With the nearest field there is.
    """
    for field in fields:
        if not runs or any(field_of(values, field) is not MISSING for values in runs):
            continue
        known = sorted({name for values in runs for name in (*values, *flatten(values))})
        last = field.rpartition(".")[2]
        near = [name for name in known if name.rpartition(".")[2] == last]
        hint = did_you_mean(field, known) or did_you_mean(field, near, cutoff=0.0)
        raise ConfigError(f"no run has a field {field!r}{hint}; saesteer runs show ID lists them.")


def markdown_table(rows: Sequence[Values]) -> str:
    """Return rows as a markdown table; the first row's keys are its columns."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[shown(row.get(column, MISSING)) for column in columns] for row in rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def shown(value: Any) -> str:
    """Return a value as tables show it: four digits, null as null, nothing for a missing field."""
    if value is MISSING:
        return ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(inner) for inner in value)
    return str(value)


def _equal(found: Any, value: str | None) -> bool:
    if isinstance(found, list | tuple):
        return any(_equal(each, value) for each in found)
    if found is None or value is None:
        return found is value
    if isinstance(found, bool):
        return str(found).lower() == value.lower()
    if isinstance(found, int | float):
        return float(found) == _number(value)
    return str(found) == value


def _like(found: Any, value: str | None) -> bool:
    if isinstance(found, Mapping):
        return any(_like(inner, value) for pair in found.items() for inner in pair)
    if isinstance(found, list | tuple):
        return any(_like(inner, value) for inner in found)
    return found is not None and str(value).lower() in str(found).lower()


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, str | None], bool]:
    def holds(found: Any, value: str | None) -> bool:
        # Text has an order too: that of times.
        if isinstance(found, str) and value is not None:
            return compare(found, value)
        a, b = _number(found), _number(value)
        return a == a and b == b and compare(a, b)

    return holds


def _number(value: Any) -> float:
    """Return a finite number, also one that is written as text; NaN for all else."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _own_number(value: Any) -> float:
    return math.nan if isinstance(value, str) else _number(value)


def _sort_key(value: Any) -> tuple[int, float, str]:
    number = _own_number(value)
    return (0, number, "") if number == number else (1, 0.0, shown(value))


# What it computes, and of how many numbers at least.
_AGGREGATES: dict[str, tuple[Callable[[list[float]], Any], int]] = {
    "count": (len, 0),
    "mean": (statistics.fmean, 1),
    "median": (statistics.median, 1),
    "std": (statistics.stdev, 2),
    "min": (min, 1),
    "max": (max, 1),
}
_COMPARISONS: dict[str, Callable[[Any, str | None], bool]] = {
    "=": _equal,
    "in": _equal,
    "~": _like,
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
}
