"""Plotly figures of a sweep; all text in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from saesteer.report.drawing import blank_figure, plain
from saesteer.report.palette import BASELINE, GRID, HEADLINE, NULL, SOFT, faint

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Record = Mapping[str, Any]
# From poor to good, through tones that every kind of colour vision tells apart.
MOST_LINES = 300
SCALE = ((0.0, "#d5d9e0"), (0.5, "#7fa0e8"), (1.0, "#1d3f91"))


class Axis(NamedTuple):
    """One axis of the parallel coordinates.

    Attributes:
        label: What it shows.
        values: Each trial's place on it.
        ticks: Places with words, where they are no plain numbers.
    """

    label: str
    values: list[float]
    ticks: list[tuple[float, str]]


class Plane(NamedTuple):
    """The trials on the plane of effect against cost.

    Attributes:
        numbers: The trials.
        costs: KL measured, nats per token.
        effects: E, nats per token.
        front: The numbers of those that none beats, cheapest first.
    """

    numbers: list[int]
    costs: list[float]
    effects: list[float]
    front: list[int]


def ended(sweep: Record) -> list[Record]:
    """Return the trials that have a value."""
    return [t for t in sweep.get("trials") or () if t.get("value") is not None]


def axes(sweep: Record) -> list[Axis]:
    """Return the axes of the parallel coordinates: parameters, then metric and cost."""
    trials = ended(sweep)
    found = [_axis(parameter, trials) for parameter in sweep.get("parameters") or ()]
    metric = str(sweep.get("metric") or "value")
    numbers = [("value", metric)] + [
        (name, name)
        for name in ("effect", "kl")
        if name != metric and all(t["numbers"].get(name) is not None for t in trials)
    ]
    for field, label in numbers:
        values = [float(t["value"] if field == "value" else t["numbers"][field]) for t in trials]
        found.append(Axis(label, values, []))
    return found


def plane(sweep: Record) -> Plane | None:
    """Return the trials on the plane of effect against cost; None where none has both."""
    known = [
        (int(t["number"]), float(t["numbers"]["kl"]), float(t["numbers"]["effect"]))
        for t in ended(sweep)
        if t["numbers"].get("kl") is not None and t["numbers"].get("effect") is not None
    ]
    if not known:
        return None
    numbers, costs, effects = (list(column) for column in zip(*known, strict=True))
    return Plane(numbers, costs, effects, list(sweep.get("pareto") or ()))


def parallel_figure(sweep: Record, words: Mapping[int, str]) -> Figure:
    """Draw every trial as a line through its parameters to its metric, the best on top.

    Plain lines, because plotly's own parallel coordinates compile code, which the page's content
    security policy forbids.

    Args:
        sweep: What `sweep.json` holds.
        words: What each trial's parameters are.
    """
    from plotly.colors import sample_colorscale

    drawn, trials = axes(sweep), ended(sweep)
    sign = -1 if sweep.get("goal") == "minimize" else 1
    order = sorted(range(len(trials)), key=lambda place: sign * trials[place]["value"])
    order = order[-MOST_LINES:]
    values = [sign * float(trials[place]["value"]) for place in order]
    heights = [_heights(axis) for axis in drawn]
    figure = blank_figure(height=470)
    for place, share in zip(order, _shares(values), strict=True):
        number = int(trials[place]["number"])
        figure.add_scatter(
            x=list(range(len(drawn))),
            y=[height[place] for height in heights],
            mode="lines",
            line={
                "color": sample_colorscale([list(stop) for stop in SCALE], [share])[0],
                "width": 3 if number == sweep.get("best") else 1.6,
            },
            name=plain(words.get(number, str(number)), 90),
            hovertemplate=f"{plain(words.get(number, str(number)), 120)}<extra></extra>",
        )
    for place, axis in enumerate(drawn):
        _draw_axis(figure, place, axis)
    figure.update_xaxes(visible=False, range=[-0.02, len(drawn) - 0.95])
    figure.update_yaxes(visible=False, range=[-0.08, 1.12])
    figure.update_layout(
        showlegend=False, hovermode="closest", margin={"l": 165, "r": 30, "t": 10, "b": 10}
    )
    return figure


def _shares(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]


def _heights(axis: Axis) -> list[float]:
    low, high = _ends(axis)
    return [(value - low) / (high - low) if high > low else 0.5 for value in axis.values]


def _ends(axis: Axis) -> tuple[float, float]:
    places = [*axis.values, *(place for place, _ in axis.ticks)]
    return min(places), max(places)


def _draw_axis(figure: Figure, place: int, axis: Axis) -> None:
    low, high = _ends(axis)
    ticks = axis.ticks or [
        (low + (high - low) * share, f"{low + (high - low) * share:.3g}")
        for share in ((0, 0.25, 0.5, 0.75, 1) if high > low else (0,))
    ]
    figure.add_shape(
        type="line", x0=place, x1=place, y0=0, y1=1, line={"color": SOFT, "width": 1}, layer="above"
    )
    figure.add_annotation(
        x=place,
        y=1.09,
        text=f"<b>{plain(axis.label, 24)}</b>",
        showarrow=False,
        font={"size": 12.5},
    )
    for value, word in ticks:
        figure.add_annotation(
            x=place,
            y=(value - low) / (high - low) if high > low else 0.5,
            text=plain(word, 26),
            showarrow=False,
            xanchor="right",
            xshift=-5,
            font={"size": 11, "color": SOFT},
            bgcolor="rgba(255,255,255,0.75)",
        )


def importance_figure(importance: Mapping[str, float]) -> Figure:
    """Draw each parameter's share of the metric's variance."""
    names = sorted(importance, key=lambda name: importance[name])
    figure = blank_figure(height=90 + 34 * len(names))
    figure.add_bar(
        x=[importance[name] for name in names],
        y=[plain(name) for name in names],
        orientation="h",
        marker={"color": HEADLINE},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_xaxes(title_text="share of the variance", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(showgrid=False, ticklabelstandoff=8)
    figure.update_layout(margin={"l": 10, "r": 16, "t": 10, "b": 50}, showlegend=False)
    return figure


def front_figure(found: Plane, words: Mapping[int, str]) -> Figure:
    """Draw effect against KL, with the front.

    Args:
        found: The trials.
        words: What each trial's parameters are.
    """
    figure = blank_figure(height=430)
    on_front = set(found.front)
    rest = [place for place, number in enumerate(found.numbers) if number not in on_front]
    at = {number: place for place, number in enumerate(found.numbers)}
    front = [at[number] for number in found.front if number in at]
    for places, name, colour, mode in (
        (rest, "other trials", faint(SOFT, 0.55), "markers"),
        (front, "not beaten", BASELINE, "lines+markers"),
    ):
        figure.add_scatter(
            x=[found.costs[place] for place in places],
            y=[found.effects[place] for place in places],
            mode=mode,
            name=name,
            marker={"size": 10, "color": colour, "line": {"width": 1, "color": "white"}},
            line={"color": colour, "width": 2, "shape": "hv"},
            customdata=[plain(words.get(found.numbers[place], ""), 90) for place in places],
            hovertemplate="%{customdata}<br>E %{y:.3f} at KL %{x:.3f}<extra></extra>",
        )
    figure.update_xaxes(title_text="KL(steered ‖ base) measured on neutral answers, nats per token")
    figure.update_yaxes(title_text="effect E, nats per token", gridcolor=GRID)
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        margin={"l": 62, "r": 16, "t": 30, "b": 56},
        colorway=[NULL],
    )
    return figure


def _axis(parameter: Record, trials: Sequence[Record]) -> Axis:
    name, label = str(parameter["name"]), str(parameter["short"])
    if not parameter["is_number"]:
        words = [str(t["labels"][name]) for t in trials]
        order = [*dict.fromkeys([*(w for w in parameter["choices"] if w in words), *words])]
        return Axis(
            label,
            [float(order.index(w)) for w in words],
            [*zip(map(float, range(len(order))), order, strict=True)],
        )
    values = [float(t["values"][name]) for t in trials]
    if parameter["is_log"]:
        spread = sorted(set(values))
        shown = spread if len(spread) < 8 else spread[:: max(1, len(spread) // 6)]
        return Axis(
            f"{label} (log)",
            [math.log10(v) for v in values],
            [(math.log10(v), f"{v:.3g}") for v in shown],
        )
    few = sorted(set(values))
    # The values that were tried, where they are few.
    return Axis(label, values, [(v, f"{v:g}") for v in few] if len(few) <= 8 else [])
