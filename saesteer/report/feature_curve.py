"""How many features it takes: effect and judged text against their number, next to the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from saesteer.methods.registry import n_features_named
from saesteer.report import plots
from saesteer.report.comparison import EFFECT, RATIO, Comparison
from saesteer.report.layout import Column, Figure, Remark, Section, Table, estimate
from saesteer.report.wording import Estimate, spoken

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
    # Each persona's own, with intervals over its pairs and its questions.
    effect_of: Mapping[str, Estimate]
    judged_of: Mapping[str, Estimate]


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
        read = found.metrics.get("generation_personas", ())
        mine = [r for r in read if (r["method"], r["kl_target"]) == (name, found.at)]
        own = {persona: found.persona_effect(persona, name)[0] for persona in found.personas}
        said = {r["persona"]: JUDGED(r) for r in mine}
        return Point(n, EFFECT(row), RATIO(row), *both, own, said)

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
            ("features-effect", "effect E, nats per token", lambda point: point.effect_of),
            ("features-text", "judged text", lambda point: point.judged_of),
        )
        if any(own.value is not None for point in points[:-1] for own in pick(point).values())
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
            f"At KL {found.at:g}. A line is a persona, with 95% intervals over its held-out pairs, "
            "or over the questions that are answered; the point at its end, which stands apart, is "
            f"{baseline}. The table is over all personas.",
            [*figures, Table.of(points, columns, printed=True)],
        )
    ]


def _figure(
    points: Sequence[Point],
    pick: Callable[[Point], Mapping[str, Estimate]],
    title: str,
    baseline: str,
) -> Drawing:
    numbers = [point.n for point in points[:-1] if point.n is not None]
    # As far from the last number as two of them lie apart.
    end = numbers[-1] * max(numbers[-1] / numbers[-2], 2)
    series = []
    for persona in dict.fromkeys(name for point in points for name in pick(point)):
        own = [(point.n or end, *pick(point).get(persona, UNKNOWN)) for point in points]
        n, value, low, high = zip(*own, strict=True)
        series.append(plots.Series(spoken(persona), value, n, low, high))
    return plots.lines(
        series,
        log_x=True,
        ticks={**{n: str(n) for n in numbers}, end: baseline},
        x_title="SAE features, log scale",
        y_title=title,
    )
