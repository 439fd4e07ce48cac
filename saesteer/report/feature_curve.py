"""How many features it takes: effect and judged text against their number, next to the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from saesteer.methods.registry import n_features_named
from saesteer.report import plots
from saesteer.report.comparison import EFFECT, RATIO, Comparison
from saesteer.report.layout import Column, Figure, Remark, Section, Table, estimate
from saesteer.report.wording import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

# What counts as reaching the baseline.
ENOUGH = 0.9
JUDGED = estimate("judge_range")
UNKNOWN = Estimate(None)


class Point(NamedTuple):
    """A number of features, and what they do; `n` of None is the baseline."""

    n: int | None
    effect: Estimate
    ratio: Estimate
    judged: Estimate
    judged_ratio: Estimate


def feature_points(found: Comparison) -> list[Point]:
    """Return a comparison's methods that are called by their number of features, and its baseline.

    Nothing where fewer than two are.
    """
    judged = {
        row["method"]: row
        for row in found.metrics["generation_summary"]
        if row["kl_target"] == found.at
    }

    def point(n: int | None, name: str) -> Point:
        row, text = found.summary[name, found.at], judged.get(name)
        both = (UNKNOWN, UNKNOWN) if text is None else (JUDGED(text), RATIO(text))
        return Point(n, EFFECT(row), RATIO(row), *both)

    numbers = {n: name for name in found.methods if (n := n_features_named(name)) is not None}
    points = [point(n, numbers[n]) for n in sorted(numbers)]
    return [*points, point(None, found.pair[-1])] if len(points) > 1 else []


def enough(points: Sequence[Point], ratio: Callable[[Point], Estimate]) -> int | None:
    """Return the number of features from which on all have 90% of what the baseline does."""
    needed = None
    for point in reversed(points):
        if point.n is not None:
            value = ratio(point).value
            if value is None or value < ENOUGH:
                break
            needed = point.n
    return needed


def curve_remarks(found: Comparison) -> list[Remark]:
    """Say how many features 90% of the baseline takes, of likelihood and of text."""
    points, remarks = feature_points(found), []
    if not points:
        return []
    baseline = found.methods[found.pair[-1]].label
    ways: Mapping[str, Callable[[Point], Estimate]] = {
        "effect": lambda point: point.ratio,
        "effect on judged text": lambda point: point.judged_ratio,
    }
    for what, ratio in ways.items():
        if all(ratio(point).value is None for point in points[:-1]):
            remarks.append(Remark(f"No ratio of the {what} to {baseline} was measured.", "open"))
            continue
        n = enough(points, ratio)
        takes = f"{n} features or more" if n else f"more than {points[-2].n} features"
        said = f"{ENOUGH:.0%} of the {what} of {baseline} takes {takes}."
        remarks.append(Remark(said, "good" if n else "open"))
    return remarks


def curve_section(found: Comparison) -> list[Section]:
    """Draw effect and judged text against the number of features."""
    points = feature_points(found)
    if not points:
        return []
    baseline = found.methods[found.pair[-1]].label
    figures = [
        Figure(
            name, f"{title} by number of features", partial(_figure, points, pick, title, baseline)
        )
        for name, title, pick in (
            ("features-effect", "effect E, nats per token", lambda point: point.effect),
            ("features-text", "judged text", lambda point: point.judged),
        )
        if any(pick(point).value is not None for point in points[:-1])
    ]
    columns = [
        Column("features", lambda point: baseline if point.n is None else point.n),
        Column("E", lambda point: point.effect),
        Column("of the baseline's E", lambda point: point.ratio),
        Column("judged text", lambda point: point.judged),
        Column("of the baseline's text", lambda point: point.judged_ratio),
    ]
    return [
        Section(
            "How many features",
            f"At KL {found.at:g}, with 95% intervals over personas where there are several. The "
            f"dotted line is {baseline}.",
            [*figures, Table.of(points, columns, printed=True)],
        )
    ]


def _figure(
    points: Sequence[Point], pick: Callable[[Point], Estimate], title: str, baseline: str
) -> Drawing:
    there = [(point.n, *pick(point)) for point in points[:-1] if pick(point).value is not None]
    n, value, low, high = zip(*there, strict=True)
    level: Any = pick(points[-1]).value
    return plots.lines(
        [plots.Series("SAE features", value, n, low, high)],
        log_x=True,
        ticks=n,
        level=None if level is None else (baseline, level),
        x_title="SAE features, log scale",
        y_title=title,
    )
