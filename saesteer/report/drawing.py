"""Plotly figures of the comparison's data; all text in them is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saesteer.report.effects import ForestRow, PersonaEffect, StrengthCurve, TargetCurve
from saesteer.report.palette import BASELINE, DIVERGING, GRID, HEADLINE, INK, NULL, SOFT, faint
from saesteer.report.reading import Point, show, spoken
from saesteer.report.written import JudgeSpan

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LONGEST_LABEL = 40


def plain(text: object, longest: int = LONGEST_LABEL) -> str:
    """Return text that plotly shows as it is, shortened; plotly would read markup in it."""
    words = " ".join(str(text).split())
    short = words if len(words) <= longest else words[: longest - 1] + "…"
    return html.escape(short, quote=False)


def target_figure(
    curves: Sequence[TargetCurve], colours: dict[str, str], headline: object, baseline: object
) -> Figure:
    """Draw effect against KL for every method, with bands."""
    figure = blank_figure(height=470)
    # Headline and baseline come last, so that they lie on top.
    for curve in reversed(curves):
        name, colour = curve.method.name, colours[curve.method.name]
        main = name in (headline, baseline)
        _band(figure, curve, faint(colour, 0.18 if main else 0.035))
        figure.add_scatter(
            x=list(curve.kl_targets),
            y=[point.value for point in curve.points],
            mode="lines+markers",
            name=plain(curve.method.label),
            legendgroup=name,
            line={"color": colour, "width": 3.2 if main else 1.6, "dash": _dash(curve)},
            marker={"size": 9 if main else 5, "color": colour},
            customdata=[_range(point) for point in curve.points],
            hovertemplate="%{y:.3f} (%{customdata})",
        )
    kl_targets = sorted({kl_target for curve in curves for kl_target in curve.kl_targets})
    figure.update_xaxes(
        title_text="KL(steered ‖ base) on neutral answers, nats per token, log scale",
        type="log",
        tickvals=kl_targets,
        ticktext=[f"{kl_target:g}" for kl_target in kl_targets],
    )
    figure.update_yaxes(title_text="effect E, nats per token")
    figure.update_layout(
        hovermode="x unified",
        legend={"x": 1.02, "y": 1, "traceorder": "reversed", "font": {"size": 12}},
        margin={"l": 62, "r": 10, "t": 16, "b": 56},
    )
    return figure


def strength_figure(
    curves: Sequence[StrengthCurve], colours: dict[str, str], headline: object, baseline: object
) -> Figure:
    """Draw how the margin changes with the strength."""
    figure = blank_figure(height=380)
    for curve in reversed(curves):
        name, colour = curve.method.name, colours[curve.method.name]
        main = name in (headline, baseline)
        figure.add_scatter(
            x=list(curve.multiples),
            y=list(curve.changes),
            mode="lines+markers",
            name=plain(curve.method.label),
            line={"color": colour, "width": 3.2 if main else 1.4, "dash": _dash(curve)},
            marker={"size": 8 if main else 4},
            opacity=1 if main else 0.75,
            hovertemplate="%{y:+.3f}",
        )
    figure.update_xaxes(
        title_text="multiple of the strength that meets the KL target, each sign its own"
    )
    figure.update_yaxes(title_text="change of the margin, nats per token")
    figure.update_layout(
        hovermode="x unified",
        legend={"x": 1.02, "y": 1, "traceorder": "reversed", "font": {"size": 12}},
        margin={"l": 62, "r": 10, "t": 16, "b": 56},
    )
    return figure


def forest_figure(rows: Sequence[ForestRow], headline: str, baseline: str) -> Figure:
    """Draw every persona's effect: headline, baseline and the range of the null."""
    figure = blank_figure(height=110 + 46 * len(rows))
    heights = [len(rows) - 1 - place for place in range(len(rows))]
    nulls = [(y, row.null) for y, row in zip(heights, rows, strict=True) if row.null]
    if nulls:
        figure.add_bar(
            x=[max(null) - min(null) for _, null in nulls],
            y=[y for y, _ in nulls],
            base=[min(null) for _, null in nulls],
            orientation="h",
            width=0.56,
            marker={"color": faint(NULL, 0.55)},
            name="range of the random null",
            hoverinfo="skip",
        )
        points = [(value, y) for y, null in nulls for value in null]
        figure.add_scatter(
            x=[value for value, _ in points],
            y=[y for _, y in points],
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 11, "color": faint(SOFT, 0.5)},
            name="a random draw",
            showlegend=False,
            hovertemplate="random: %{x:.3f}<extra></extra>",
        )
    for attribute, label, colour, shift in (
        ("baseline", baseline, BASELINE, -0.15),
        ("headline", headline, HEADLINE, 0.15),
    ):
        found = [
            (y + shift, getattr(row, attribute))
            for y, row in zip(heights, rows, strict=True)
            if getattr(row, attribute).point.value is not None
        ]
        _forest_points(figure, found, label, colour)
    figure.update_yaxes(
        tickvals=heights,
        ticktext=[plain(spoken(row.persona)) + (" •" if row.own else "") for row in rows],
        range=[-0.6, len(rows) - 0.4],
        showgrid=False,
        zeroline=False,
        ticklabelstandoff=8,
    )
    figure.update_xaxes(
        title_text="effect E at the headline KL target, nats per token", zeroline=True
    )
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "reversed"},
        margin={"l": 10, "r": 16, "t": 40, "b": 54},
    )
    return figure


def judge_figure(spans: Sequence[JudgeSpan], colours: dict[str, str]) -> Figure:
    """Draw where the judge reads each persona's texts: negative, no and positive strength."""
    names = [*dict.fromkeys(span.persona for span in spans)]
    labels = [*dict.fromkeys(span.method.name for span in spans)]
    figure = blank_figure(height=150 + 46 * len(names))
    for place, name in enumerate(labels):
        own = [span for span in spans if span.method.name == name]
        shift = 0.0 if len(labels) == 1 else 0.15 - 0.3 * place
        heights = [len(names) - 1 - names.index(span.persona) + shift for span in own]
        colour = colours.get(name, SOFT)
        x = [v for span in own for v in (span.minus.value, span.plus.value, None)]
        y = [v for height in heights for v in (height, height, None)]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": faint(colour, 0.35), "width": 5},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
        _judge_points(figure, own, heights, colour)
    base = [(span.base.value, span.persona) for span in spans if span.base.value is not None]
    if base:
        figure.add_scatter(
            x=[value for value, _ in base],
            y=[len(names) - 1 - names.index(persona) for _, persona in base],
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 22, "color": SOFT, "line": {"width": 2}},
            name="no steering",
            hovertemplate="no steering: %{x:.2f}<extra></extra>",
        )
    figure.update_yaxes(
        tickvals=[len(names) - 1 - place for place in range(len(names))],
        ticktext=[plain(spoken(name)) for name in names],
        range=[-0.6, len(names) - 0.4],
        showgrid=False,
        zeroline=False,
        ticklabelstandoff=8,
    )
    figure.update_xaxes(title_text="mean judge logit: against the persona ← → like the persona")
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        margin={"l": 10, "r": 16, "t": 40, "b": 54},
    )
    return figure


def matrix_figure(
    personas: Sequence[str], values: Sequence[Sequence[float | None]], limit: float
) -> Figure:
    """Draw a side-effect matrix: steered persona down, measured persona across.

    Args:
        personas: Names, in the order of rows and columns.
        values: Effects, nats per token.
        limit: The |value| of the full colour, so that matrices compare.
    """
    import plotly.graph_objects as go

    n = len(personas)
    figure = blank_figure(height=210 + 34 * n)
    names = [plain(name, 26) for name in personas]
    figure.add_trace(
        go.Heatmap(
            z=[list(line) for line in values],
            zmin=-limit,
            zmax=limit,
            zmid=0,
            colorscale=[list(stop) for stop in DIVERGING],
            text=[[show(value, ".2f") for value in line] for line in values],
            texttemplate="%{text}" if n <= 14 else "",
            textfont={"size": 11},
            customdata=[[f"{row} steered, {column} measured" for column in names] for row in names],
            hovertemplate="%{customdata}: %{z:.3f}<extra></extra>",
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "E"}, "thickness": 10, "outlinewidth": 0, "len": 0.7},
        )
    )
    ticks = {"tickvals": list(range(n)), "ticktext": names, "showgrid": False, "zeroline": False}
    figure.update_xaxes(**ticks, side="top", tickangle=-40, ticks="")
    figure.update_yaxes(**ticks, autorange="reversed", title_text="steered")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10})
    return figure


def _band(figure: Figure, curve: TargetCurve, colour: str) -> None:
    banded = [
        (kl_target, point)
        for kl_target, point in zip(curve.kl_targets, curve.points, strict=True)
        if point.low is not None and point.high is not None
    ]
    x = [kl_target for kl_target, _ in banded]
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*(p.high for _, p in banded), *(p.low for _, p in reversed(banded))],
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=curve.method.name,
        showlegend=False,
        mode="lines",
    )


def _forest_points(
    figure: Figure, found: Sequence[tuple[float, PersonaEffect]], label: str, colour: str
) -> None:
    seeds = [(value, y) for y, own in found for value in own.seeds if len(own.seeds) > 1]
    figure.add_scatter(
        x=[value for value, _ in seeds],
        y=[y for _, y in seeds],
        mode="markers",
        marker={"size": 5, "color": faint(colour, 0.45)},
        hovertemplate="one seed: %{x:.3f}<extra></extra>",
        showlegend=False,
        legendgroup=label,
    )
    points = [own.point for _, own in found]
    figure.add_scatter(
        x=[point.value for point in points],
        y=[y for y, _ in found],
        mode="markers",
        marker={"size": 11, "color": colour, "line": {"width": 1.5, "color": "white"}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [_gap(point.high, point.value) for point in points],
            "arrayminus": [_gap(point.value, point.low) for point in points],
            "color": faint(colour, 0.6),
            "thickness": 2,
            "width": 0,
        },
        name=plain(label),
        legendgroup=label,
        customdata=[_range(point) for point in points],
        hovertemplate="%{x:.3f} (%{customdata})",
    )


def _judge_points(
    figure: Figure, own: Sequence[JudgeSpan], heights: Sequence[float], colour: str
) -> None:
    label = plain(own[0].method.label)
    line = {"width": 2.5, "color": colour}
    for sign, symbol in (("minus", "circle-open"), ("plus", "circle")):
        points: list[Point] = [getattr(span, sign) for span in own]
        figure.add_scatter(
            x=[point.value for point in points],
            y=list(heights),
            mode="markers",
            marker={"symbol": symbol, "size": 11, "color": colour, "line": line},
            name=f"{label}, {'positive' if sign == 'plus' else 'negative'} strength",
            legendgroup=own[0].method.name,
            customdata=[_range(point) for point in points],
            hovertemplate="%{x:.2f} (%{customdata})",
        )


def _gap(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(0.0, high - low)


def _range(point: Point) -> str:
    if point.low is None or point.high is None:
        return "no interval"
    return f"{show(point.low, '.3f')} to {show(point.high, '.3f')}"


def _dash(curve: TargetCurve | StrengthCurve) -> str:
    return {"null": "dot", "prompt": "dash"}.get(curve.method.kind, "solid")


def blank_figure(height: int) -> Figure:
    """Return an empty figure in the page's style, as wide as its place."""
    import plotly.graph_objects as go

    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": "#b9c0ca",
        "zerolinewidth": 1,
        "linecolor": GRID,
        "title": {"font": {"size": 12.5, "color": SOFT}},
        "automargin": True,
    }
    return go.Figure(
        layout={
            "template": None,
            "height": height,
            "autosize": True,
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": {"family": FONT}},
            "dragmode": False,
        }
    )
