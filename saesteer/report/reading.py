"""Reading `metrics.json` of a comparison: anything may be absent, empty or null."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

Metrics = Mapping[str, Any]
Row = Mapping[str, Any]
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"


class Point(NamedTuple):
    """A figure with its interval, where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Method(NamedTuple):
    """A method as the page names it."""

    name: str
    label: str
    kind: str


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def rows(metrics: Metrics, *path: str) -> list[Row]:
    """Return the list of records under a path; empty where it is absent or something else."""
    found: Any = metrics
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    return [row for row in found if isinstance(row, Mapping)]


def groups(metrics: Metrics, name: str) -> Mapping[str, Any]:
    """Return the mapping under a name; empty where it is absent or something else."""
    found = metrics.get(name)
    return found if isinstance(found, Mapping) else {}


def point(row: Row | None, name: str = "effect", prefix: str = "") -> Point:
    """Return a record's figure with its interval (`low`, `high`, each after the prefix)."""
    if row is None:
        return Point(None)
    names = (name, f"{prefix}low", f"{prefix}high")
    return Point(*(number(row.get(field)) for field in names))


def same(a: Any, b: Any) -> bool:
    """Return whether two KL targets are the same number."""
    first, second = number(a), number(b)
    return first is not None and second is not None and math.isclose(first, second, rel_tol=1e-6)


def mean(values: Iterable[Any]) -> float | None:
    """Return the mean of what is a number; None of none."""
    kept = [found for value in values if (found := number(value)) is not None]
    return fmean(kept) if kept else None


def kl_targets(metrics: Metrics) -> list[float]:
    """Return the KL targets, rising; those of the summary where none are listed."""
    listed = metrics.get("kl_targets") or [row.get("kl_target") for row in rows(metrics, "summary")]
    return sorted({found for value in listed if (found := number(value)) is not None})


def headline_kl_target(metrics: Metrics) -> float | None:
    """Return the headline KL target; the middle one where none is named."""
    named = number(metrics.get("headline_kl_target"))
    known = kl_targets(metrics)
    return named if named is not None or not known else known[len(known) // 2]


def methods(metrics: Metrics) -> list[Method]:
    """Return the methods: headline, baseline, then the others as listed or first met."""
    listed = {str(row.get("name")): row for row in rows(metrics, "methods")}
    met = [*listed]
    for part in ("summary", "effects", "areas", "generation_summary"):
        met += [str(row["method"]) for row in rows(metrics, part) if row.get("method")]
    first = [str(metrics[key]) for key in ("headline_method", "baseline") if metrics.get(key)]
    order = dict.fromkeys([*(name for name in first if name in met), *met])
    return [
        Method(
            name,
            str(listed.get(name, {}).get("label") or name.replace("_", " ")),
            str(listed.get(name, {}).get("kind") or ""),
        )
        for name in order
    ]


def label_of(metrics: Metrics, name: Any) -> str:
    """Return a method's label."""
    found = {method.name: method.label for method in methods(metrics)}
    return found.get(str(name), str(name).replace("_", " "))


def personas(metrics: Metrics) -> list[str]:
    """Return the personas as listed, then any that only a result names."""
    listed = [str(row.get("name")) for row in rows(metrics, "personas")]
    met = [str(row["persona"]) for row in rows(metrics, "effects") if row.get("persona")]
    kept = [str(name) for part in ("features", "completions") for name in groups(metrics, part)]
    return [*dict.fromkeys([*listed, *met, *kept])]


def spoken(name: Any) -> str:
    """Return a persona's name as words."""
    return str(name).replace("_", " ")


def show(value: Any, form: str = ".2f") -> str:
    """Return a number as text with a real minus sign; a dash for anything else."""
    found = number(value)
    if found is None:
        return NOTHING
    text = format(found, form)
    # What rounds to zero has no sign to speak of.
    rounded = text if any(digit in text for digit in "123456789") else text.lstrip("+-")
    return rounded.replace("-", MINUS)


def share(value: Any, of: Any = None) -> str:
    """Return a verdict in words: yes or no, a count of so many, or a share in percent."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        total = number(of)
        return f"{value}" if total is None else f"{value} of {total:.0f}"
    return show(value, ".0%")


def listing(names: Sequence[str], most: int = 4) -> str:
    """Return names as words, the last ones counted where there are many."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return "".join(names)
