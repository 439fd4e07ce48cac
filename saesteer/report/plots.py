"""Every kind of figure, drawn with plotly in one style; all text in them is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
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


def blank(height: int, title: str = "") -> Figure:
    """Return an empty figure in the page's style, as wide as its place."""
    import plotly.graph_objects as go

    top = 44 if title else 14
    figure = go.Figure(layout={"template": _style(), "height": height + top, "margin": {"t": top}})
    if title:
        figure.update_layout(title={"text": plain(title, 110)})
    return figure


def _style() -> Any:
    from plotly.graph_objects import layout

    axis = {
        "gridcolor": GRID,
        "zerolinecolor": "#b9c0ca",
        "zerolinewidth": 1,
        "linecolor": GRID,
        "title": {"font": {"size": 12.5, "color": SOFT}},
        "automargin": True,
    }
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
    heading = {"x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad": {"t": 12}}
    return layout.Template(
        layout={
            "autosize": True,
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "title": {**heading, "font": {"size": 14}},
            "legend": legend,
            "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": {"family": FONT}},
            "hovermode": "closest",
            "dragmode": False,
            "margin": {"l": 10, "r": 10, "t": 14, "b": 10},
        }
    )


def _legend(figure: Figure, n: int, *, left: int = 62, **more: Any) -> None:
    """Make room for a legend above the figure, where it has more than one name, and for axes."""
    rows = math.ceil(n / 3) if n > 1 else 0
    figure.update_layout(
        height=figure.layout.height + 19 * max(0, rows - 1),
        showlegend=n > 1,
        legend=more,
        margin={"l": left, "t": figure.layout.margin.t + 22 * min(1, rows), "b": 56},
    )


def _ticks(labels: Sequence[str], longest: int = 24) -> dict[str, Any]:
    """Return an axis' labels, as many as can be read, the last one among them."""
    step = max(1, -(-len(labels) // MOST_TICKS))
    places = list(range(0, len(labels), step))
    if step > 1:
        places = [place for place in places if place < len(labels) - step] + [len(labels) - 1]
    return {
        "tickvals": places,
        "ticktext": [plain(labels[place], longest) for place in places],
        "ticks": "",
    }


def _columns(labels: Sequence[str]) -> dict[str, Any]:
    """Return the labels of an x axis, slanted where they would not fit beside each other."""
    slanted = len(labels) > 8 and max(map(len, labels), default=0) > 3
    return {**_ticks(labels), "tickangle": -55 if slanted else None}


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
    """Draw numbers as colours, NaN as none; the exact ones are on hover.

    Args:
        values: The numbers, what they are called in `rows` and `columns`.
        rows: The rows' labels.
        columns: The columns' labels.
        title: What is shown, above it.
        row_title: What rows are, such as "layer".
        column_title: What columns are.
        unit: What the numbers are.
        low: Lower ends of their intervals; `high` holds the upper ones.
        high: See `low`.
        n: How many prompts each is a mean of.
        texts: What is written in the cells.
        colours: "difference" is purple to green about 0, "loss" light to dark on a log scale,
            "share" light to dark from 0 to 1.
        downwards: Whether the first row is at the top.
    """
    import plotly.graph_objects as go

    values = np.where(np.isfinite(values), values, np.nan)
    shown = np.log10(np.maximum(values, FLOOR)) if colours == "loss" else values
    least, most = _limits(shown, colours)
    figure = blank(136 + max(110, min((26 if downwards else 17) * len(rows), 640)), title)
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "len": 0.9}
    if unit:
        bar["title"] = {"text": plain(unit, 70), "side": "right", "font": {"size": 11.5}}
    if colours == "loss":
        marks = [10.0**power for power in range(-2, 4) if least <= power <= most]
        bar |= {"tickvals": [math.log10(m) for m in marks], "ticktext": [f"{m:g}" for m in marks]}
    stops = SCALES[colours]
    figure.add_trace(
        go.Heatmap(
            z=_cells(shown),
            zmin=least,
            zmax=most,
            colorscale=[[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)],
            customdata=_cell_words(values, rows, columns, row_title, column_title, low, high, n),
            hovertemplate="%{customdata}<extra></extra>",
            text=texts and [[plain(text) for text in line] for line in texts],
            texttemplate="" if texts is None else "%{text}",
            textfont={"size": 11},
            xgap=1,
            ygap=1,
            colorbar=bar,
        )
    )
    figure.update_xaxes(
        title_text=plain(column_title, 60),
        showgrid=False,
        zeroline=False,
        **_columns(columns),
    )
    figure.update_yaxes(
        title_text=plain(row_title, 60),
        showgrid=False,
        zeroline=False,
        autorange="reversed" if downwards else None,
        **_ticks(rows, 30),
    )
    return figure


def _limits(shown: np.ndarray, colours: Colours) -> tuple[float, float]:
    if colours == "share":
        return 0.0, 1.0
    finite = shown[np.isfinite(shown)]
    if colours == "loss":
        return (float(finite.min()), float(finite.max()) + 1e-6) if finite.size else (-2.0, 2.0)
    largest = (float(np.abs(finite).max()) if finite.size else 0.0) or 1.0
    return -largest, largest


def _cells(values: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in line] for line in values]


def _cell_words(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str,
    column_title: str,
    low: np.ndarray | None,
    high: np.ndarray | None,
    n: np.ndarray | None,
) -> list[list[str]]:
    down, across = plain(row_title.split(",")[0], 30), plain(column_title, 30)
    words = []
    for i, row in enumerate(rows):
        line = []
        for j, column in enumerate(columns):
            said = f"{down} {plain(row, 60)}, {across} {plain(column, 60)}".strip()
            said += f"<br><b>{show(values[i, j].item(), '+.4f')}</b>"
            if low is not None and high is not None and np.isfinite(low[i, j]):
                said += f" ({between(low[i, j].item(), high[i, j].item(), '+.3f')})"
            if n is not None:
                said += f"<br>{n[i, j]:.0f} prompt{'s' if n[i, j] != 1 else ''}"
            line.append(said)
        words.append(line)
    return words


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
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    columns = min(columns, len(matrices))
    lines = math.ceil(len(matrices) / columns)
    figure = make_subplots(
        rows=lines,
        cols=columns,
        subplot_titles=[plain(title, 30) for title in titles],
        horizontal_spacing=0.03,
        vertical_spacing=0.2 / lines,
    )
    stops = SCALES["share"]
    names = [plain(name, 14) for name in classes]
    for place, counts in enumerate(matrices):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        trace = go.Heatmap(
            z=shares.tolist(),
            text=counts.tolist(),
            texttemplate="%{text}",
            textfont={"size": 10},
            zmin=0,
            zmax=1,
            colorscale=[[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)],
            showscale=False,
            customdata=[[f"true {a}, predicted {b}" for b in names] for a in names],
            hovertemplate="%{customdata}: %{text} (%{z:.0%})<extra></extra>",
        )
        figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    labels = {"tickvals": list(range(len(names))), "ticktext": names, "tickfont": {"size": 9}}
    axes: dict[str, Any] = {**labels, "showgrid": False, "ticks": "", "automargin": False}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes, autorange="reversed")
    figure.update_annotations(font={"size": 11})
    margin = {"l": 34, "t": 30, "b": 30}
    return figure.update_layout(template=_style(), height=60 + 165 * lines, margin=margin)


def lines(
    series: Sequence[Series],
    labels: Sequence[str] = (),
    *,
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    percent: bool = False,
    ticks: Sequence[float] = (),
    level: tuple[str, float] | None = None,
) -> Figure:
    """Draw lines with their bands; those that come later lie on top.

    Args:
        series: The lines.
        labels: What the places along x are called, where these are no numbers.
        title: What is shown, above it.
        x_title: What stands along x.
        y_title: What the values are.
        log_x: A logarithmic x axis.
        log_y: A logarithmic y axis.
        percent: Whether values are shares.
        ticks: Where x is marked; plotly's choice if empty.
        level: A dotted line across: its name and where it lies.
    """
    figure = blank(390, title)
    form = ".0%" if percent else "+.4f"
    for place, one in enumerate(series):
        colour, name = one.colour or SERIES[place % len(SERIES)], plain(one.name)
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
            customdata=_point_words(one, form),
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
        where = {"tickvals": list(ticks), "ticktext": [f"{tick:g}" for tick in ticks]}
    kind = "log" if log_x else "linear"
    figure.update_xaxes(title_text=plain(x_title, 90), type=kind, **where)
    figure.update_yaxes(
        title_text=plain(y_title, 80),
        type="log" if log_y else "linear",
        exponentformat="power",
        tickformat=".0%" if percent else None,
    )
    figure.update_layout(hovermode="x unified" if len(series) > 1 else "closest")
    _legend(figure, len(series) + (level is not None), traceorder="reversed")
    return figure


def _band(figure: Figure, x: Sequence[float], one: Series, colour: str) -> None:
    there = [i for i in range(len(x)) if known(one.low[i]) and known(one.high[i])]
    figure.add_scatter(
        x=[*(x[i] for i in there), *(x[i] for i in reversed(there))],
        y=[*(one.high[i] for i in there), *(one.low[i] for i in reversed(there))],
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=plain(one.name),
        showlegend=False,
        mode="lines",
    )


def _point_words(one: Series, form: str, labels: Sequence[str] = ()) -> list[str]:
    words = []
    for place, value in enumerate(one.y):
        said = show(value, form)
        if len(one.low) and (ends := between(one.low[place], one.high[place], form)):
            said += f" ({ends})"
        words.append(f"{plain(labels[place], 60)}: {said}" if labels else said)
    return words


def bars(
    series: Sequence[Series],
    labels: Sequence[str],
    *,
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    sideways: bool = False,
    percent: bool = False,
) -> Figure:
    """Draw bars; those of several groups stand on each other, each sign on its own side.

    Args:
        series: The groups, a value for each label.
        labels: What the bars are of.
        title: What is shown, above it.
        x_title: What the labels are.
        y_title: What the values are.
        sideways: Bars to the right, the first label at the bottom.
        percent: Whether values are shares.
    """
    figure = blank(80 + 34 * len(labels) if sideways else 370, title)
    places = list(range(len(labels)))
    form = ".1%" if percent else "+.4f"
    for number, one in enumerate(series):
        values = [value if known(value) else None for value in one.y]
        figure.add_bar(
            x=values if sideways else places,
            y=places if sideways else values,
            orientation="h" if sideways else "v",
            name=plain(one.name),
            marker={"color": one.colour or SERIES[number % len(SERIES)]},
            customdata=_point_words(one, form, labels),
            hovertemplate="%{customdata}<extra></extra>",
        )
    ticks = _ticks(labels) if sideways else _columns(labels)
    across, along = ("yaxis", "xaxis") if sideways else ("xaxis", "yaxis")
    figure.update_layout(
        {
            across: {"title": {"text": plain(x_title, 60)}, "showgrid": False} | ticks,
            along: {
                "title": {"text": plain(y_title, 80)},
                "tickformat": ".0%" if percent else None,
            },
        },
        barmode="relative",
    )
    _legend(figure, len(series))
    return figure


def scatter(
    clouds: Sequence[Series],
    *,
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    diagonal: bool = False,
    size: float = 6,
) -> Figure:
    """Draw points, each named on hover; `diagonal` adds the line on which both axes agree."""
    figure = blank(400, title)
    if diagonal:
        values = [v for cloud in clouds for v in (*cloud.x, *cloud.y) if known(v)]
        ends = [min(values, default=0.0), max(values, default=1.0)]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": SOFT, "dash": "dot", "width": 1},
            hoverinfo="skip",
            showlegend=False,
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
    figure.update_xaxes(title_text=plain(x_title, 80))
    figure.update_yaxes(title_text=plain(y_title, 80))
    _legend(figure, 2)
    return figure


def forest(
    rows: Sequence[str],
    dots: Sequence[Dots],
    *,
    null: Sequence[Sequence[float]] = (),
    x_title: str = "",
) -> Figure:
    """Draw estimates with their intervals, a line each, the first row at the top.

    Args:
        rows: The rows' names.
        dots: The estimates.
        null: For each row what chance alone did, as a band with a tick for each draw.
        x_title: What the numbers are.
    """
    figure = blank(96 + 46 * len(rows))
    heights = [len(rows) - 1 - place for place in range(len(rows))]
    _draw_null(figure, heights, null)
    for one in dots:
        _draw_dots(figure, heights, one)
    figure.update_yaxes(
        tickvals=heights,
        ticktext=[plain(row) for row in rows],
        range=[-0.6, len(rows) - 0.4],
        showgrid=False,
        zeroline=False,
        ticklabelstandoff=8,
    )
    figure.update_xaxes(title_text=plain(x_title, 80), zeroline=True)
    _legend(figure, 2, left=10, traceorder="reversed")
    return figure


def _draw_null(figure: Figure, heights: Sequence[float], null: Sequence[Sequence[float]]) -> None:
    bands = [(y, draws) for y, draws in zip(heights, null, strict=False) if len(draws)]
    if not bands:
        return
    figure.add_bar(
        x=[max(draws) - min(draws) for _, draws in bands],
        y=[y for y, _ in bands],
        base=[min(draws) for _, draws in bands],
        orientation="h",
        width=0.56,
        marker={"color": faint(NULL, 0.55)},
        name="range of the random null",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[value for _, draws in bands for value in draws],
        y=[y for y, draws in bands for _ in draws],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 11, "color": faint(SOFT, 0.5)},
        name="a random draw",
        showlegend=False,
        hovertemplate="random: %{x:.3f}<extra></extra>",
    )


def _draw_dots(figure: Figure, heights: Sequence[float], one: Dots) -> None:
    name = plain(one.name)
    there = [i for i, value in enumerate(one.values) if known(value)]
    if len(one.start):
        joined = [i for i in there if known(one.start[i])]
        figure.add_scatter(
            x=[v for i in joined for v in (one.start[i], one.values[i], None)],
            y=[v for i in joined for v in (heights[i] + one.shift,) * 2 + (None,)],
            mode="lines",
            line={"color": faint(one.colour, 0.35), "width": 5},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
    small = [(v, heights[i] + one.shift) for i in there if one.small for v in one.small[i]]
    if small:
        figure.add_scatter(
            x=[value for value, _ in small],
            y=[y for _, y in small],
            mode="markers",
            marker={"size": 5, "color": faint(one.colour, 0.45)},
            hovertemplate="one seed: %{x:.3f}<extra></extra>",
            showlegend=False,
            legendgroup=name,
        )
    values = [float(one.values[i]) for i in there]  # type: ignore[arg-type]
    ends = {
        end: [getattr(one, end)[i] for i in there] if one.low else [] for end in ("low", "high")
    }
    error = None
    if one.low:
        error = {
            "type": "data",
            "symmetric": False,
            "array": [h - v if known(h) else 0 for h, v in zip(ends["high"], values, strict=True)],
            "arrayminus": [
                v - b if known(b) else 0 for b, v in zip(ends["low"], values, strict=True)
            ],
            "color": faint(one.colour, 0.6),
            "thickness": 2,
            "width": 0,
        }
    ranges = [between(*pair, ".3f") for pair in zip(ends["low"], ends["high"], strict=True)]
    hollow = "open" in one.symbol
    figure.add_scatter(
        x=values,
        y=[heights[i] + one.shift for i in there],
        mode="markers",
        marker={
            "symbol": one.symbol,
            "size": 20 if one.symbol.startswith("line") else 11,
            "color": one.colour,
            "line": {"width": 2.2 if hollow else 1.5, "color": one.colour if hollow else "white"},
        },
        error_x=error,
        name=name,
        legendgroup=name,
        customdata=[f" ({words})" if words else "" for words in ranges] or [""] * len(values),
        hovertemplate="%{x:.3f}%{customdata}",
    )
