"""Asking the list of runs: filters over nested fields, sorting, tables and aggregates."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesteer.tracking.stored_run import StoredRun
from saesteer.utils.errors import ConfigError

# Longest first, so that >= is not read as > and a value that begins with =.
OPERATORS = ("!=", ">=", "<=", "!~", "=", ">", "<", "~")
AGGREGATES = ("count", "mean", "median", "std", "min", "max")
MISSING = object()
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_WORDS = re.compile(r"^(?P<field>[\w.\-/ ]+?)\s+(?P<word>not in|in|exists|missing)\b(?P<rest>.*)$")


@dataclass(frozen=True)
class Predicate:
    """One condition on a run.

    Attributes:
        field: A nested field, such as "config.model.name" or "metrics.effect".
        operator: One of = != < <= > >= ~ !~ in, not in, exists, missing.
        value: What it is held against; text is read as the field's own kind.
    """

    field: str
    operator: str
    value: Any = None

    def holds(self, run: Mapping[str, Any]) -> bool:
        """Return whether a run, as `StoredRun.as_dict` gives it, meets the condition.

        A field that a run does not have meets `missing`, `!=`, `!~` and `not in` alone; a field
        that is null exists, and equals null.
        """
        found = field_of(run, self.field)
        if self.operator in ("exists", "missing"):
            return (found is not MISSING) == (self.operator == "exists")
        if found is MISSING:
            return self.operator in ("!=", "!~", "not in")
        return _COMPARISONS[self.operator](found, self.value)

    def leaves(self) -> tuple[Predicate, ...]:
        """Return the single conditions in it: itself."""
        return (self,)


@dataclass(frozen=True)
class Combined:
    """Conditions joined to one.

    Attributes:
        word: "and", "or" or "not".
        parts: The conditions; of "not" there is one.
    """

    word: str
    parts: tuple[Predicate | Combined, ...]

    def holds(self, run: Mapping[str, Any]) -> bool:
        """Return whether a run, as `StoredRun.as_dict` gives it, meets the condition."""
        met = (part.holds(run) for part in self.parts)
        if self.word == "and":
            return all(met)
        return any(met) == (self.word == "or")

    def leaves(self) -> tuple[Predicate, ...]:
        """Return the single conditions in it."""
        return tuple(leaf for part in self.parts for leaf in part.leaves())


def parse_predicate(text: str) -> Predicate | Combined:
    """Read a condition: `metrics.effect>0.1`, `kind=run and (tags~a or not tags exists)`.

    Args:
        text: Field, operator and value; null is no value, quoted "null" the word. `exists` and
            `missing` stand alone behind the field. `and` binds before `or`; a value that holds
            one of these words is quoted.

    Raises:
        ConfigError: There is no operator, no field, or no value.
    """
    text = text.strip()
    for word in ("or", "and"):
        parts = _split(text, word)
        if len(parts) > 1:
            return Combined(word, tuple(map(parse_predicate, parts)))
    if text.startswith(("not ", "not(")):
        return Combined("not", (parse_predicate(text[3:]),))
    if text.startswith("(") and text.endswith(")"):
        return parse_predicate(text[1:-1])
    return _single(text)


def _split(text: str, word: str) -> list[str]:
    """Split at a word that stands in no quotes and no brackets."""
    bare = _QUOTED.sub(lambda quoted: "_" * len(quoted[0]), text)
    parts, start, depth = [], 0, 0
    for found in re.finditer(rf"[()]|(?<=[\s)]){word}(?=[\s(]|$)", bare):
        if found[0] in "()":
            depth += 1 if found[0] == "(" else -1
        elif depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


def _single(text: str) -> Predicate:
    words = _WORDS.match(text)
    if words is not None:
        field, word, rest = words["field"].strip(), words["word"], words["rest"].strip()
        if word in ("exists", "missing"):
            if rest:
                raise ConfigError(f"filter {text!r}: nothing may stand behind {word}; remove it.")
            return Predicate(field, word)
        values = [_value(part, text) for part in rest.strip("()[] ").split(",") if part.strip()]
        if not values:
            raise ConfigError(f"filter {text!r} names no value; write such as kind in run,compare.")
        return Predicate(field, word, values)
    places = [(text.find(op), -len(op), op) for op in OPERATORS if op in text]
    if not places:
        raise ConfigError(
            f"filter {text!r} has no operator; write such as metrics.effect>0.1, tags~persona or "
            f"'metrics.effect exists' (operators: {' '.join(OPERATORS)} in exists missing), and "
            "quote a value that holds the words and, or."
        )
    place, _, operator = min(places)
    field, value = text[:place].strip(), text[place + len(operator) :].strip()
    if not field:
        raise ConfigError(f"filter {text!r} names no field; write such as status=finished.")
    return Predicate(field, operator, _value(value, text))


def filter_runs(
    runs: Iterable[StoredRun], predicates: Sequence[Predicate | Combined]
) -> list[StoredRun]:
    """Return the runs that meet every condition, in their order.

    Raises:
        ConfigError: A field is in none of the runs; the nearest is named.
    """
    listed = [(run, run.as_dict()) for run in runs]
    leaves = [leaf for predicate in predicates for leaf in predicate.leaves()]
    named = [leaf.field for leaf in leaves if leaf.operator not in ("exists", "missing")]
    check_fields([values for _, values in listed], named)
    return [run for run, values in listed if all(p.holds(values) for p in predicates)]


def sort_runs(
    runs: Sequence[StoredRun], field: str, *, descending: bool = False
) -> list[StoredRun]:
    """Return runs in order of a field; runs without it, or with null, come last.

    Raises:
        ConfigError: No run has the field.
    """
    listed = [(run, run.as_dict()) for run in runs]
    check_fields([values for _, values in listed], [field])
    found = [(field_of(values, field), run) for run, values in listed]
    empty = [run for value, run in found if value is MISSING or value is None]
    full = [(v, run) for v, run in found if v is not MISSING and v is not None]
    full.sort(key=lambda pair: _sort_key(pair[0]), reverse=descending)
    return [run for _, run in full] + empty


def aggregate(
    runs: Sequence[StoredRun],
    fields: Sequence[str],
    *,
    by: Sequence[str] = (),
    kinds: Sequence[str] = ("count", "mean", "std"),
) -> list[dict[str, Any]]:
    """Return one row for each group of runs: its size, and aggregates of numbers.

    Args:
        runs: The runs.
        fields: Fields to aggregate; values that are no finite number are left out, and `count`
            says how many remain.
        by: Fields that make the groups; one group of all if none.
        kinds: Some of count, mean, median, std (over n - 1), min and max.

    Raises:
        ConfigError: A kind is unknown, or no run has a field.
    """
    for kind in kinds:
        if kind not in AGGREGATES:
            raise ConfigError(f"aggregate {kind!r} is unknown; use {', '.join(AGGREGATES)}.")
    listed = [run.as_dict() for run in runs]
    check_fields(listed, [*fields, *by])
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for values in listed:
        groups.setdefault(tuple(shown(field_of(values, f)) for f in by), []).append(values)
    rows = []
    for key in sorted(groups):
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        row["runs"] = len(groups[key])
        for field in fields:
            numbers = [n for n in (_number(field_of(v, field)) for v in groups[key]) if n == n]
            row |= {f"{kind} {field}": _AGGREGATES[kind](numbers) for kind in kinds}
        rows.append(row)
    return rows


def differences(runs: Sequence[StoredRun]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ: the value of each run by the setting's name."""
    flat = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = {name: [settings.get(name, MISSING) for settings in flat] for name in names}
    return {n: values for n, values in rows.items() if any(v != values[0] for v in values[1:])}


def metrics_side_by_side(runs: Sequence[StoredRun]) -> dict[str, list[Any]]:
    """Return every metric with the value of each run, by the metric's name."""
    flat = [flatten(run.metrics) for run in runs]
    names = dict.fromkeys(name for metrics in flat for name in metrics)
    return {name: [metrics.get(name, MISSING) for metrics in flat] for name in names}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names; an empty one stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def field_of(values: Mapping[str, Any], field: str) -> Any:
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


def check_fields(runs: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> None:
    """Refuse a field that none of the runs has.

    Raises:
        ConfigError: With the nearest field there is.
    """
    for field in fields:
        if not runs or any(field_of(values, field) is not MISSING for values in runs):
            continue
        known = {name for values in runs for name in (*values, *flatten(values))}
        near = difflib.get_close_matches(field, sorted(known), n=1, cutoff=0.5)
        if not near:
            ends = sorted(n for n in known if n.rpartition(".")[2] == field.rpartition(".")[2])
            near = ends[:1]
        hint = f"; did you mean {near[0]}?" if near else "; saesteer runs show ID lists them."
        raise ConfigError(f"no run has a field {field!r}{hint}")


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
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


def _value(text: str, whole: str) -> str | None:
    text = text.strip()
    if not text:
        raise ConfigError(f"filter {whole!r} names no value; write null for no value.")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return None if text in ("null", "None") else text


def _equal(found: Any, value: Any) -> bool:
    if isinstance(found, list | tuple) and not isinstance(value, list | tuple):
        return any(_equal(each, value) for each in found)
    if found is None or value is None:
        return found is value
    if isinstance(found, bool):
        return str(found).lower() == str(value).lower()
    if isinstance(found, int | float):
        return float(found) == _written_number(value)
    return str(found) == str(value)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(found: Any, value: Any) -> bool:
        # Text has an order too: that of times.
        if isinstance(found, str) and isinstance(value, str):
            return compare(found, value)
        a, b = _number(found), _written_number(value)
        return a == a and b == b and compare(a, b)

    return holds


def _like(found: Any, value: Any) -> bool:
    if isinstance(found, Mapping):
        return any(_like(inner, value) for pair in found.items() for inner in pair)
    if isinstance(found, list | tuple):
        return any(_like(inner, value) for inner in found)
    return found is not None and str(value).lower() in str(found).lower()


def _number(value: Any) -> float:
    """Return a finite number, NaN for all else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def _written_number(value: Any) -> float:
    """Return a number, also one that is written as text; NaN for all else."""
    if isinstance(value, str):
        try:
            return _number(float(value))
        except ValueError:
            return math.nan
    return _number(value)


def _sort_key(value: Any) -> tuple[int, float, str]:
    number = _number(value)
    return (0, number, "") if number == number else (1, 0.0, shown(value))


def _statistic(name: str, least: int) -> Callable[[list[float]], float | None]:
    def compute(numbers: list[float]) -> float | None:
        import statistics

        return None if len(numbers) < least else float(getattr(statistics, name)(numbers))

    return compute


_AGGREGATES: dict[str, Callable[[list[float]], Any]] = {
    "count": len,
    "mean": _statistic("fmean", 1),
    "median": _statistic("median", 1),
    "std": _statistic("stdev", 2),
    "min": lambda numbers: min(numbers, default=None),
    "max": lambda numbers: max(numbers, default=None),
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": _equal,
    "!=": lambda found, value: not _equal(found, value),
    "<": _ordered(lambda a, b: a < b),
    "<=": _ordered(lambda a, b: a <= b),
    ">": _ordered(lambda a, b: a > b),
    ">=": _ordered(lambda a, b: a >= b),
    "~": _like,
    "!~": lambda found, value: not _like(found, value),
    "in": lambda found, values: any(_equal(found, value) for value in values),
    "not in": lambda found, values: not any(_equal(found, value) for value in values),
}
