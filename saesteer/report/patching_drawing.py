"""Plotly figures of patching results; all text in them is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report.drawing import blank_figure, plain
from saesteer.report.palette import CLUSTERS, DIVERGING, SOFT, faint
from saesteer.report.patching_figures import Chart, Heatmap, Scatter
from saesteer.report.reading import show

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_LABELS = 48


def colour_limit(maps: Sequence[Heatmap]) -> float:
    """Return the |value| of the full colour, one for all maps that are to be compared."""
    sizes = [np.abs(one.values[np.isfinite(one.values)]) for one in maps]
    largest = max((float(size.max()) for size in sizes if size.size), default=0.0)
    return largest or 1.0


def drawn(figure: Heatmap | Chart | Scatter, limit: float | None = None) -> Figure:
    """Return a figure's drawing, its title above it.

    Args:
        figure: Its data.
        limit: The |value| of a heatmap's full colour; its own largest if None.
    """
    if isinstance(figure, Heatmap):
        made = heatmap_figure(figure, limit)
    elif isinstance(figure, Chart):
        made = chart_figure(figure)
    else:
        made = scatter_figure(figure)
    title = {"text": plain(figure.title, 110), "x": 0, "xref": "paper", "font": {"size": 14}}
    made.update_layout(title=title, margin={"t": 44})
    return made


def heatmap_figure(heat: Heatmap, limit: float | None = None) -> Figure:
    """Draw effects with diverging colours about 0; the exact values are on hover.

    Args:
        heat: The effects.
        limit: The |value| of the full colour; the map's own largest if None.
    """
    import plotly.graph_objects as go

    limit = limit or colour_limit([heat])
    rows, columns = [plain(name, 30) for name in heat.rows], [plain(n, 24) for n in heat.columns]
    height = 170 + max(150, min(17 * len(rows), 620))
    figure = blank_figure(height=height)
    figure.add_trace(
        go.Heatmap(
            z=_cells(heat.values),
            zmin=-limit,
            zmax=limit,
            zmid=0,
            colorscale=[list(stop) for stop in DIVERGING],
            customdata=_hover(heat, rows, columns),
            hovertemplate="%{customdata}<extra></extra>",
            xgap=1,
            ygap=1,
            colorbar={"thickness": 10, "outlinewidth": 0, "len": 0.9},
        )
    )
    slanted: dict[str, Any] = (
        {"tickangle": -60} if max(map(len, columns), default=0) > 3 and len(columns) > 8 else {}
    )
    figure.update_xaxes(
        title_text=plain(heat.column_title, 60),
        showgrid=False,
        zeroline=False,
        **_ticks(columns),
        **slanted,
    )
    figure.update_yaxes(
        title_text=plain(heat.row_title, 60), showgrid=False, zeroline=False, **_ticks(rows)
    )
    figure.update_layout(margin={"l": 10, "r": 10, "t": 12, "b": 10})
    return figure


def _cells(values: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in line] for line in values]


def _ticks(labels: Sequence[str]) -> dict[str, Any]:
    step = max(1, -(-len(labels) // MOST_LABELS))
    places = list(range(0, len(labels), step))
    return {"tickvals": places, "ticktext": [labels[place] for place in places], "ticks": ""}


def _hover(heat: Heatmap, rows: Sequence[str], columns: Sequence[str]) -> list[list[str]]:
    down, across = plain(heat.row_title.split(",")[0], 30), plain(heat.column_title, 30)
    texts = []
    for i, row in enumerate(rows):
        line = []
        for j, column in enumerate(columns):
            value = show(heat.values[i, j].item(), "+.4f")
            text = f"{down} {row}, {across} {column}<br><b>{value}</b>"
            if np.isfinite(heat.low[i, j]):
                text += f" ({show(heat.low[i, j].item(), '+.3f')} to "
                text += f"{show(heat.high[i, j].item(), '+.3f')})"
            line.append(f"{text}<br>{heat.n[i, j]:.0f} prompt{'s' if heat.n[i, j] != 1 else ''}")
        texts.append(line)
    return texts


def chart_figure(chart: Chart) -> Figure:
    """Draw lines with their bands, or bars with their intervals."""
    figure = blank_figure(height=380)
    x = list(range(len(chart.labels)))
    for place, series in enumerate(chart.series):
        colour = CLUSTERS[place % len(CLUSTERS)]
        values = _cells(np.array([series.values]))[0]
        name = plain(series.name)
        texts = [
            f"{plain(label)}: {show(value, '+.4f')}{_range(series.low, series.high, i)}"
            for i, (label, value) in enumerate(zip(chart.labels, series.values, strict=True))
        ]
        hover: dict[str, Any] = {"customdata": texts, "hovertemplate": "%{customdata}"}
        if chart.bars:
            figure.add_bar(x=x, y=values, name=name, marker={"color": colour}, **hover)
            continue
        if series.low:
            _band(figure, x, series.low, series.high, faint(colour, 0.14), name)
        figure.add_scatter(
            x=x,
            y=values,
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2.2},
            marker={"size": 5},
            **hover,
        )
    figure.update_xaxes(
        title_text=plain(chart.x_title, 60), **_ticks([plain(n, 24) for n in chart.labels])
    )
    figure.update_yaxes(
        title_text=plain(chart.y_title, 80),
        type="log" if chart.log else "linear",
        exponentformat="power",
    )
    figure.update_layout(
        barmode="relative" if chart.bars and len(chart.series) > 1 else "group",
        showlegend=len(chart.series) > 1,
        legend={"x": 1.01, "y": 1, "font": {"size": 12}},
        margin={"l": 62, "r": 10, "t": 16, "b": 56},
    )
    return figure


def _range(low: Sequence[float], high: Sequence[float], place: int) -> str:
    if not low or not np.isfinite(low[place]):
        return ""
    return f" ({show(low[place], '+.3f')} to {show(high[place], '+.3f')})"


def _band(
    figure: Figure,
    x: Sequence[int],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    name: str,
) -> None:
    known = [i for i in x if np.isfinite(low[i]) and np.isfinite(high[i])]
    figure.add_scatter(
        x=[*known, *reversed(known)],
        y=[*(high[i] for i in known), *(low[i] for i in reversed(known))],
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
        mode="lines",
    )


def scatter_figure(scatter: Scatter) -> Figure:
    """Draw approximations against what they approximate, with the line on which they agree."""
    figure = blank_figure(height=420)
    low, high = ends_of(scatter)
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": SOFT, "dash": "dot", "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    for place, cloud in enumerate(scatter.clouds):
        figure.add_scatter(
            x=cloud.x.tolist(),
            y=cloud.y.tolist(),
            mode="markers",
            name=plain(cloud.name, 60),
            marker={"size": 6, "color": faint(CLUSTERS[place % len(CLUSTERS)], 0.55)},
            customdata=[plain(label, 80) for label in cloud.labels],
            hovertemplate="%{customdata}<br>%{x:+.4f}, %{y:+.4f}<extra></extra>",
        )
    figure.update_xaxes(title_text=plain(scatter.x_title, 80))
    figure.update_yaxes(title_text=plain(scatter.y_title, 80))
    figure.update_layout(
        showlegend=True,
        legend={"x": 0.01, "y": 0.99, "font": {"size": 12}},
        margin={"l": 62, "r": 10, "t": 16, "b": 56},
    )
    return figure


def ends_of(scatter: Scatter) -> tuple[float, float]:
    """Return the least and the greatest value on either axis."""
    values = [v for cloud in scatter.clouds for v in (*cloud.x.tolist(), *cloud.y.tolist())]
    return (min(values), max(values)) if values else (0.0, 1.0)
