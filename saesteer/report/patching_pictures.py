"""Patching figures as PNG; matplotlib draws them, which needs no browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report.palette import CLUSTERS, DIVERGING, SOFT
from saesteer.report.patching_drawing import ends_of
from saesteer.report.patching_figures import Chart, Heatmap, Scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LABELS = 40
DPI = 130


def picture(figure: Heatmap | Chart | Scatter, path: Path, limit: float | None = None) -> None:
    """Write a figure as PNG.

    Args:
        figure: Its data.
        path: The file.
        limit: The |value| of a heatmap's full colour; its own largest if None.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=_size(figure), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    if isinstance(figure, Heatmap):
        image = _draw_heatmap(axes, figure, limit)
        canvas.colorbar(image, ax=axes, shrink=0.8, label=_said(figure.unit))
    elif isinstance(figure, Chart):
        _draw_chart(axes, figure)
    else:
        _draw_scatter(axes, figure)
    axes.set_title(_said(figure.title), fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.savefig(path, dpi=DPI, format="png")


def _size(figure: Heatmap | Chart | Scatter) -> tuple[float, float]:
    if isinstance(figure, Heatmap):
        rows, columns = figure.values.shape
        return min(16.0, max(5.5, 2.6 + 0.26 * columns)), min(14.0, max(2.6, 1.6 + 0.17 * rows))
    return (8.0, 4.2) if isinstance(figure, Chart) else (5.6, 5.0)


def _draw_heatmap(axes: Axes, heat: Heatmap, limit: float | None) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    known = np.abs(heat.values[np.isfinite(heat.values)])
    limit = limit or (float(known.max()) if known.size else 0.0) or 1.0
    colours = LinearSegmentedColormap.from_list("diverging", list(DIVERGING))
    # No cell is not an effect of 0, which is white.
    colours = colours.with_extremes(bad="#e3e6eb")
    image = axes.imshow(
        heat.values, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", origin="lower"
    )
    _label(axes.set_yticks, heat.rows)
    _label(axes.set_xticks, heat.columns, **_slanted(heat.columns))
    axes.set_ylabel(_said(heat.row_title), fontsize=8, color=SOFT)
    axes.set_xlabel(_said(heat.column_title), fontsize=8, color=SOFT)
    return image


def _slanted(labels: tuple[str, ...]) -> dict[str, Any]:
    if max(map(len, labels), default=0) <= 3:
        return {}
    return {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}


def _label(set_ticks: Any, labels: tuple[str, ...], **style: Any) -> None:
    step = max(1, -(-len(labels) // MOST_LABELS))
    places = list(range(0, len(labels), step))
    set_ticks(places, [_said(labels[place], 24) for place in places], fontsize=7, **style)


def _draw_chart(axes: Axes, chart: Chart) -> None:
    x = np.arange(len(chart.labels))
    below, above = np.zeros(len(x)), np.zeros(len(x))
    for place, series in enumerate(chart.series):
        colour, values = CLUSTERS[place % len(CLUSTERS)], np.array(series.values, dtype=float)
        if chart.bars:
            # Bars of several groups stand on each other, each sign on its own side.
            filled = np.nan_to_num(values)
            bottom = np.where(filled >= 0, above, below)
            axes.bar(x, filled, bottom=bottom, color=colour, label=_said(series.name))
            above, below = above + np.maximum(filled, 0), below + np.minimum(filled, 0)
            continue
        if series.low:
            low, high = np.array(series.low, dtype=float), np.array(series.high, dtype=float)
            axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(x, values, color=colour, marker="o", markersize=3, label=_said(series.name))
    if chart.log:
        axes.set_yscale("log")
    else:
        axes.axhline(0, color="#b9c0ca", linewidth=0.8)
    _label(axes.set_xticks, chart.labels, **_slanted(chart.labels))
    axes.set_xlabel(_said(chart.x_title), fontsize=8, color=SOFT)
    axes.set_ylabel(_said(chart.y_title), fontsize=8, color=SOFT)
    if len(chart.series) > 1:
        axes.legend(fontsize=7, frameon=False)


def _draw_scatter(axes: Axes, scatter: Scatter) -> None:
    low, high = ends_of(scatter)
    axes.plot([low, high], [low, high], color=SOFT, ls=":", lw=1)
    for place, cloud in enumerate(scatter.clouds):
        colour = CLUSTERS[place % len(CLUSTERS)]
        name = _said(cloud.name)
        axes.scatter(cloud.x, cloud.y, s=14, color=colour, alpha=0.55, linewidths=0, label=name)
    axes.legend(fontsize=7, frameon=False)
    axes.set_xlabel(_said(scatter.x_title), fontsize=8, color=SOFT)
    axes.set_ylabel(_said(scatter.y_title), fontsize=8, color=SOFT)


def _said(text: object, longest: int = 90) -> str:
    """Return text that matplotlib shows as it is; it would read formulas between dollar signs."""
    words = " ".join(str(text).split())
    short = words if len(words) <= longest else words[: longest - 1] + "…"
    return short.replace("$", r"\$")
