"""Every kind of figure, drawn with plotly in one style; all text in them is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from saesteer.report.wording import between, known, show

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Colours = Literal["difference", "loss", "share"]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# What a page is about and what that is held against stand out; the others go by kind.
HEADLINE, BASELINE = "#2f5fd0", "#e0672b"
NULL, GRID, INK, SOFT = "#c3c8d0", "#e8eaee", "#1f2630", "#667080"
SERIES = (
    *("#2f5fd0", "#e0672b", "#0e8a8a", "#a64ca6", "#b8860b"),
    *("#c23b5a", "#3b8b3b", "#7d6fd0", "#8a6d4f", "#4a90c2"),
)
# Purple to green through white, told apart with any kind of colour vision.
AGAINST, TOWARDS = "#8e4ea8", "#1f8a4c"
SCALES: dict[Colours, tuple[str, ...]] = {
    "difference": ("#6d2f86", "#b58cc6", "#fbfbfa", "#86c79a", "#12703a"),
    "loss": ("#f4f7fb", "#cfdcf0", "#93b1de", "#5b7fc4", "#37509a", "#272a63", "#170f33"),
    "share": ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"),
}
AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": "#b9c0ca",
    "zerolinewidth": 1,
    "linecolor": GRID,
    "title": {"font": {"size": 12.5, "color": SOFT}},
    "automargin": True,
}
STYLE = {
    "autosize": True,
    "font": {"family": FONT, "size": 13, "color": INK},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "xaxis": AXIS,
    "yaxis": AXIS,
    "title": {"x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad": {"t": 12}}
    | {"font": {"size": 14}},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
    "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": {"family": FONT}},
    "hovermode": "closest",
    "dragmode": False,
    "margin": {"l": 10, "r": 10, "t": 14, "b": 10},
}
MOST_TICKS = 48
LONGEST = 40
# Losses below this have the colour of this one.
FLOOR = 0.01


class Series(NamedTuple):
    """One line, one group of bars or one cloud of points; None or NaN is no value."""

    name: str
    y: Sequence[float | None]
    x: Sequence[float] = ()  # at the figure's labels if empty
    low: Sequence[float | None] = ()  # the ends of the values' intervals, if they have any
    high: Sequence[float | None] = ()
    labels: Sequence[str] = ()  # what each point is, on hover
    colour: str = ""  # the next one of the palette if empty
    width: float = 2.2
    dash: str = "solid"
    steps: bool = False  # a cloud's points are joined by a staircase


class Dots(NamedTuple):
    """One estimate for each row of a forest; None where there is none."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    colour: str = HEADLINE
    shift: float = 0.0  # how far above its row's middle it stands, in rows
    symbol: str = "circle"
    small: Sequence[Sequence[float]] = ()  # small dots beside the estimate, such as single seeds
    start: Sequence[float | None] = ()  # where a faint bar to the value begins


def plain(text: object, longest: int = LONGEST) -> str:
    """Return text that plotly shows as it is, shortened; plotly would read markup in it."""
    words = " ".join(str(text).split())
    short = words if len(words) <= longest else words[: longest - 1] + "…"
    return html.escape(short, quote=False)


def faint(colour: str, opacity: float) -> str:
    """Return a colour (#rrggbb) with an opacity."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def blank(height: int, *, title: str = "", x_title: str = "", y_title: str = "") -> Figure:
    """Return an empty figure in the page's style, as wide as its place."""
    import plotly.graph_objects as go

    top = 44 if title else 14
    figure = go.Figure(
        layout={"template": {"layout": STYLE}, "height": height + top, "margin": {"t": top}}
    )
    if title:
        figure.update_layout(title={"text": plain(title, 110)})
    figure.update_xaxes(title_text=plain(x_title, 90) or None)
    return figure.update_yaxes(title_text=plain(y_title, 80) or None)


def _legend(figure: Any, n: int, *, left: int = 62, **more: Any) -> Figure:
    """Make room for a legend above the figure, where it has more than one name, and for axes."""
    rows = math.ceil(n / 3) if n > 1 else 0
    return figure.update_layout(
        height=figure.layout.height + 19 * max(0, rows - 1),
        showlegend=n > 1,
        legend=more,
        margin={"l": left, "t": figure.layout.margin.t + 22 * min(1, rows), "b": 56},
    )


def _ticks(labels: Sequence[str], longest: int = 30) -> dict[str, Any]:
    """Return an axis' labels, as many as can be read, the last one among them."""
    step = max(1, -(-len(labels) // MOST_TICKS))
    places = list(range(0, len(labels), step))
    if step > 1:
        places = [place for place in places if place < len(labels) - step] + [len(labels) - 1]
    texts = [plain(labels[place], longest) for place in places]
    return {"tickvals": places, "ticktext": texts, "ticks": "", "zeroline": False}


def _columns(labels: Sequence[str]) -> dict[str, Any]:
    """Return the labels of an x axis, slanted where they would not fit beside each other."""
    slanted = len(labels) > 8 and max(map(len, labels), default=0) > 3
    return {**_ticks(labels, 24), "tickangle": -55 if slanted else None}


def _said(value: Any, low: Any = None, high: Any = None, form: str = "+.4f") -> str:
    ends = between(low, high, form)
    return show(value, form) + (f" ({ends})" if ends else "")


def _points(one: Series, form: str, labels: Sequence[str] = ()) -> list[str]:
    """Return what each point says on hover."""
    none = [None] * len(one.y)
    ends = zip(one.y, one.low or none, one.high or none, strict=True)
    said = [_said(value, low, high, form) for value, low, high in ends]
    if labels:
        return [f"{plain(label, 60)}: {words}" for label, words in zip(labels, said, strict=True)]
    return said


def heatmap(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    row_title: str = "",
    column_title: str = "",
    unit: str = "",
    low: Float[np.ndarray, "row column"] | None = None,
    high: Float[np.ndarray, "row column"] | None = None,
    n: Float[np.ndarray, "row column"] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    colours: Colours = "difference",
    downwards: bool = False,
) -> Figure:
    """Draw numbers as colours, NaN as none; values, intervals and prompts (`n`) are on hover.

    Differences go from purple to green about 0, losses from light to dark on a log scale, shares
    from light to dark between 0 and 1. The first row is at the bottom if not `downwards`.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    shown = np.log10(np.maximum(values, FLOOR)) if colours == "loss" else values
    limits = _limits(shown, colours)
    height = 136 + min(max((26 if downwards else 17) * len(rows), 110), 640)
    figure = blank(height, title=title, x_title=column_title, y_title=row_title)
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "len": 0.9}
    if unit:
        bar["title"] = {"text": plain(unit, 70), "side": "right", "font": {"size": 11.5}}
    if colours == "loss":
        marks = [10.0**power for power in range(-2, 4) if limits[0] <= power <= limits[1]]
        bar |= {"tickvals": [math.log10(m) for m in marks], "ticktext": [f"{m:g}" for m in marks]}
    down, across = plain(row_title.split(",")[0], 30), plain(column_title, 30)

    def said(i: int, j: int) -> str:
        words = f"{down} {plain(rows[i], 60)}, {across} {plain(columns[j], 60)}".strip()
        words += f"<br><b>{show(values[i, j].item(), '+.4f')}</b>"
        if low is not None and high is not None and np.isfinite(low[i, j]):
            words += f" ({between(low[i, j].item(), high[i, j].item(), '+.3f')})"
        if n is not None:
            words += f"<br>{n[i, j]:.0f} prompt{'s' if n[i, j] != 1 else ''}"
        return words

    hover = [[said(i, j) for j in range(len(columns))] for i in range(len(rows))]
    texts = texts and [[plain(text) for text in line] for line in texts]
    _cells(figure, shown, limits, colours, hover, texts, colorbar=bar, xgap=1, ygap=1)
    figure.update_xaxes(showgrid=False, **_columns(columns))
    ticks = _ticks(rows)
    return figure.update_yaxes(showgrid=False, autorange="reversed" if downwards else None, **ticks)


def _limits(shown: np.ndarray, colours: Colours) -> tuple[float, float]:
    if colours == "share":
        return 0.0, 1.0
    finite = shown[np.isfinite(shown)]
    if colours == "loss":
        return (float(finite.min()), float(finite.max()) + 1e-6) if finite.size else (-2.0, 2.0)
    largest = float(np.abs(finite).max(initial=0.0)) or 1.0
    return -largest, largest


def _cells(
    figure: Figure,
    values: np.ndarray,
    limits: tuple[float, float],
    colours: Colours,
    hover: Sequence[Sequence[str]],
    texts: Sequence[Sequence[Any]] | None,
    **more: Any,
) -> None:
    stops = SCALES[colours]
    figure.add_heatmap(
        z=[[float(v) if np.isfinite(v) else None for v in line] for line in values],
        zmin=limits[0],
        zmax=limits[1],
        colorscale=[[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)],
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        text=texts,
        texttemplate="" if texts is None else "%{text}",
        textfont={"size": 11},
        **more,
    )


def share_colours(figures: Sequence[Any]) -> None:
    """Give heatmaps that are to be compared the same range of colours, about 0."""
    traces = [trace for figure in figures for trace in figure.data if trace.type == "heatmap"]
    limit = max((trace.zmax for trace in traces), default=1.0)
    for trace in traces:
        trace.update(zmin=-limit, zmax=limit)


def confusions(
    matrices: Sequence[np.ndarray], titles: Sequence[str], classes: Sequence[str], *, columns: int
) -> Figure:
    """Draw counts of true by predicted class beside each other, coloured by share of the class."""
    columns, n = min(columns, len(matrices)), len(classes)
    # All lie on one pair of axes, with room for a title above each.
    step = n + 1 + n // 6
    names = [plain(name, 14) for name in classes]
    rows = math.ceil(len(matrices) / columns)
    figure = blank(46 + 165 * rows)
    for place, (counts, title) in enumerate(zip(matrices, titles, strict=True)):
        top, left = place // columns * step, place % columns * step
        hover = [
            [f"true {a}, predicted {b}: {counts[i, j]}" for j, b in enumerate(names)]
            for i, a in enumerate(names)
        ]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        at = {"x": [left + i for i in range(n)], "y": [top + i for i in range(n)]}
        _cells(figure, shares, (0, 1), "share", hover, counts.tolist(), showscale=False, **at)
        figure.add_annotation(
            x=left + (n - 1) / 2,
            y=top - 0.5,
            yanchor="bottom",
            text=plain(title, 30),
            showarrow=False,
            font={"size": 11},
        )
    axis = {"tickfont": {"size": 9}, "ticks": "", "showgrid": False, "zeroline": False}
    places = [start * step + i for start in range(max(rows, columns)) for i in range(n)]
    across, down = places[: n * columns], places[: n * rows]
    figure.update_xaxes(
        tickvals=across, ticktext=names * columns, range=[-0.5, across[-1] + 0.5], **axis
    )
    return figure.update_yaxes(
        tickvals=down, ticktext=names * rows, range=[down[-1] + 0.5, -1.2], **axis
    )


def lines(
    series: Sequence[Series],
    labels: Sequence[str] = (),
    *,
    log_x: bool = False,
    log_y: bool = False,
    percent: bool = False,
    ticks: Mapping[float, str] | None = None,
    level: tuple[str, float] | None = None,
    **titles: str,
) -> Figure:
    """Draw lines with their bands; those that come later lie on top.

    Places along x may have `labels` in place of numbers, or be marked at `ticks` alone, by name;
    `level` is a dotted line across, by its name and where it lies.
    """
    figure = blank(390, **titles)
    form = ".0%" if percent else "+.4f"
    for place, one in enumerate(series):
        colour, name = one.colour or SERIES[place % len(SERIES)], plain(one.name, 60)
        x = list(one.x) or list(range(len(one.y)))
        if len(one.low):
            _band(figure, x, one, faint(colour, 0.05 if one.width < 2 else 0.15))
        figure.add_scatter(
            x=x,
            y=[y if known(y) else None for y in one.y],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": one.width, "dash": one.dash},
            marker={"size": 3.5 + 1.2 * one.width, "color": colour},
            customdata=_points(one, form),
            hovertemplate="%{customdata}",
        )
    if level is not None:
        across = [v for one in series for v in (one.x or range(len(one.y)))]
        figure.add_scatter(
            x=[min(across, default=0), max(across, default=1)],
            y=[level[1], level[1]],
            mode="lines",
            name=plain(level[0]),
            line={"color": SOFT, "width": 1.2, "dash": "dot"},
            hoverinfo="skip",
        )
    where = _columns(labels) if labels else {}
    if ticks:
        where = {"tickvals": list(ticks), "ticktext": [plain(name) for name in ticks.values()]}
    figure.update_xaxes(type="log" if log_x else "linear", **where)
    figure.update_yaxes(
        type="log" if log_y else "linear",
        dtick=1 if log_y else None,  # powers of ten alone
        exponentformat="power",
        tickformat=".0%" if percent else None,
    )
    figure.update_layout(hovermode="x unified" if len(series) > 1 else "closest")
    return _legend(figure, len(series) + (level is not None), traceorder="reversed")


def _band(figure: Figure, x: Sequence[float], one: Series, colour: str) -> None:
    there = [i for i in range(len(x)) if known(one.low[i]) and known(one.high[i])]
    figure.add_scatter(
        x=[*(x[i] for i in there), *(x[i] for i in reversed(there))],
        y=[*(one.high[i] for i in there), *(one.low[i] for i in reversed(there))],
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=plain(one.name, 60),
        showlegend=False,
        mode="lines",
    )


def bars(
    series: Sequence[Series],
    labels: Sequence[str],
    *,
    sideways: bool = False,
    percent: bool = False,
    **titles: str,
) -> Figure:
    """Draw a bar for each label; those of several groups stand on each other, by their signs.

    Sideways they go to the right, the first label at the bottom.
    """
    figure = blank(80 + 34 * len(labels) if sideways else 370, **titles)
    places = list(range(len(labels)))
    for number, one in enumerate(series):
        values = [value if known(value) else None for value in one.y]
        figure.add_bar(
            x=values if sideways else places,
            y=places if sideways else values,
            orientation="h" if sideways else "v",
            name=plain(one.name),
            marker={"color": one.colour or SERIES[number % len(SERIES)]},
            customdata=_points(one, ".1%" if percent else "+.4f", labels),
            hovertemplate="%{customdata}<extra></extra>",
        )
    named, valued = figure.update_xaxes, figure.update_yaxes
    if sideways:
        named, valued = valued, named
    named(showgrid=False, **(_ticks(labels) if sideways else _columns(labels)))
    valued(tickformat=".0%" if percent else None)
    figure.update_layout(barmode="relative")
    return _legend(figure, len(series))


def scatter(
    clouds: Sequence[Series], *, diagonal: bool = False, size: float = 6, **titles: str
) -> Figure:
    """Draw points, each named on hover; `diagonal` adds the line on which both axes agree."""
    figure = blank(400, **titles)
    if diagonal:
        values = [v for cloud in clouds for v in (*cloud.x, *cloud.y) if known(v)]
        ends = [min(values, default=0.0), max(values, default=1.0)]
        style = {"color": SOFT, "dash": "dot", "width": 1}
        figure.add_scatter(
            x=ends, y=ends, mode="lines", line=style, hoverinfo="skip", showlegend=False
        )
    for place, cloud in enumerate(clouds):
        colour = cloud.colour or SERIES[place % len(SERIES)]
        figure.add_scatter(
            x=[float(x) for x in cloud.x],
            y=[float(y or 0.0) for y in cloud.y],
            mode="lines+markers" if cloud.steps else "markers",
            name=plain(cloud.name, 60),
            marker={"size": size, "color": colour if cloud.steps else faint(colour, 0.55)},
            line={"color": colour, "width": 2, "shape": "hv"},
            customdata=[plain(label, 90) for label in cloud.labels],
            hovertemplate="%{customdata}<br>%{x:+.4f}, %{y:+.4f}<extra></extra>",
        )
    return _legend(figure, 2)


def forest(
    rows: Sequence[str],
    dots: Sequence[Dots],
    *,
    null: Sequence[Sequence[float]] = (),
    **titles: str,
) -> Figure:
    """Draw estimates with their intervals, a line each, the first row at the top.

    `null` holds what chance alone did to each row: a band with a tick for each draw.
    """
    figure = blank(96 + 46 * len(rows), **titles)
    heights = [len(rows) - 1 - place for place in range(len(rows))]
    bands = [(y, draws) for y, draws in zip(heights, null, strict=False) if len(draws)]
    if bands:
        figure.add_bar(
            x=[max(draws) - min(draws) for _, draws in bands],
            y=[y for y, _ in bands],
            base=[min(draws) for _, draws in bands],
            orientation="h",
            width=0.56,
            marker={"color": faint(SOFT, 0.25)},
            name="range of the random null",
            hoverinfo="skip",
        )
        _marks(
            figure,
            [value for _, draws in bands for value in draws],
            [y for y, draws in bands for _ in draws],
            marker={"symbol": "line-ns-open", "size": 11, "color": faint(SOFT, 0.5)},
            hovertemplate="random: %{x:.3f}<extra></extra>",
            showlegend=False,
        )
    for one in dots:
        _draw_dots(figure, [height + one.shift for height in heights], one)
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(
        tickvals=heights,
        ticktext=[plain(row) for row in rows],
        range=[-0.6, len(rows) - 0.4],
        showgrid=False,
        zeroline=False,
        ticklabelstandoff=8,
    )
    return _legend(figure, 2, left=10, traceorder="reversed")


def _marks(figure: Figure, x: Sequence[float], y: Sequence[float], **more: Any) -> None:
    figure.add_scatter(x=x, y=y, mode="markers", **more)


def _draw_dots(figure: Figure, heights: Sequence[float], one: Dots) -> None:
    name, colour = plain(one.name, 60), one.colour
    there = [i for i, value in enumerate(one.values) if known(value)]
    hidden: dict[str, Any] = {"legendgroup": name, "showlegend": False}
    joined = [i for i in there if len(one.start) and known(one.start[i])]
    if joined:
        figure.add_scatter(
            x=[v for i in joined for v in (one.start[i], one.values[i], None)],
            y=[v for i in joined for v in (heights[i], heights[i], None)],
            mode="lines",
            line={"color": faint(colour, 0.35), "width": 5},
            hoverinfo="skip",
            **hidden,
        )
    small = [(value, heights[i]) for i in there if one.small for value in one.small[i]]
    if small:
        _marks(
            figure,
            *zip(*small, strict=True),
            marker={"size": 5, "color": faint(colour, 0.45)},
            hovertemplate="one seed: %{x:.3f}<extra></extra>",
            **hidden,
        )
    none = [None] * len(one.values)
    values, low, high = (
        np.array([part[i] for i in there], dtype=float)
        for part in (one.values, one.low or none, one.high or none)
    )
    hollow = "open" in one.symbol
    _marks(
        figure,
        values.tolist(),
        [heights[i] for i in there],
        marker={
            "symbol": one.symbol,
            "size": 20 if one.symbol.startswith("line") else 11,
            "color": colour,
            "line": {"width": 2.2 if hollow else 1.5, "color": colour if hollow else "white"},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "thickness": 2,
            "width": 0,
            "color": faint(colour, 0.6),
            "array": np.nan_to_num(high - values).tolist(),
            "arrayminus": np.nan_to_num(values - low).tolist(),
        }
        if one.low
        else None,
        name=name,
        legendgroup=name,
        customdata=[_said(*ends, ".3f") for ends in zip(values, low, high, strict=True)],
        hovertemplate="%{customdata}",
    )
