"""A plotly figure as PNG: matplotlib draws the same traces, which needs no browser."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report.plots import SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

DPI = 130
DASHES = {"solid": "-", "dot": ":", "dash": "--"}
MARKERS = {"circle": "o", "circle-open": "o", "line-ns-open": "|"}


def save_png(figures: Sequence[Figure], path: Path) -> None:
    """Write figures below each other as PNG.

    Args:
        figures: Of heatmaps, bars and lines or points, as `plots` makes them.
        path: The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    sizes = [_size(figure) for figure in figures]
    canvas = Canvas(
        figsize=(max(width for width, _ in sizes), sum(height for _, height in sizes)),
        layout="constrained",
    )
    FigureCanvasAgg(canvas)
    parts = canvas.subfigures(
        len(figures), 1, squeeze=False, height_ratios=[height for _, height in sizes]
    )
    for figure, part in zip(figures, parts[:, 0], strict=True):
        _draw(figure, part)
    canvas.savefig(path, dpi=DPI, format="png")


def _size(figure: Any) -> tuple[float, float]:
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    rows, columns = _grid(figure)
    if len(maps) > 1:
        return 1.9 * len(columns) + 0.6, 1.85 * len(rows) + 0.4
    if maps:
        tall, wide = len(maps[0].z), len(maps[0].z[0]) if len(maps[0].z) else 0
        return min(17.0, max(6.0, 3.0 + 0.25 * wide)), min(14.0, max(2.8, 1.7 + 0.19 * tall))
    return 8.0, min(12.0, max(3.0, (figure.layout.height or 400) / 95))


def _grid(figure: Any) -> tuple[list[Any], list[Any]]:
    """Return where rows of axes begin, from the top, and where columns do."""
    axes = figure.layout
    pairs = dict.fromkeys((trace.xaxis or "x", trace.yaxis or "y") for trace in figure.data)
    lefts = {round((axes[_name(x)].domain or (0, 1))[0], 4) for x, _ in pairs}
    bottoms = {round((axes[_name(y)].domain or (0, 1))[0], 4) for _, y in pairs}
    return sorted(bottoms, reverse=True), sorted(lefts)


def _name(axis: str) -> str:
    return f"{axis[0]}axis{axis[1:]}"


def _draw(figure: Any, part: Any) -> None:
    layout, (rows, columns) = figure.layout, _grid(figure)
    cells = part.subplots(max(1, len(rows)), max(1, len(columns)), squeeze=False)
    headings = [note.text for note in layout.annotations]
    title = layout.title.text
    used: dict[Any, tuple[Any, Any]] = {}
    stacked: dict[Any, Any] = {}
    for trace in figure.data:
        x, y = layout[_name(trace.xaxis or "x")], layout[_name(trace.yaxis or "y")]
        left, bottom = (round((axis.domain or (0, 1))[0], 4) for axis in (x, y))
        axes = cells[rows.index(bottom), columns.index(left)]
        used.setdefault(axes, (x, y))
        if trace.type == "bar":
            stacked[axes] = _bar(trace, axes, stacked.get(axes))
        else:
            {"heatmap": _heatmap, "scatter": _scatter}[trace.type](trace, axes)
    for place, (axes, (x, y)) in enumerate(used.items()):
        _finish(axes, x, y, layout.showlegend is not False)
        several = len(used) > 1
        if (text := headings[place] if several and place < len(headings) else title) is not None:
            axes.set_title(_words(text), fontsize=8 if several else 10, loc="left")
    for axes in cells.flat:
        if axes not in used:
            axes.axis("off")


def _heatmap(trace: Any, axes: Axes) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    stops = [(float(at), colour) for at, colour in trace.colorscale]
    # No cell is not one of the first colour.
    colours = LinearSegmentedColormap.from_list("scale", stops).with_extremes(bad="#e3e6eb")
    values = np.array(trace.z, dtype=float)
    image = axes.imshow(
        values, cmap=colours, vmin=trace.zmin, vmax=trace.zmax, aspect="auto", origin="lower"
    )
    if trace.texttemplate:
        span = (trace.zmax - trace.zmin) or 1
        for (i, j), value in np.ndenumerate(values):
            dark = abs((value - trace.zmin) / span - 0.5 * (trace.zmin < 0)) > 0.55
            words = _words(trace.text[i][j])
            axes.text(j, i, words, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    if trace.showscale is not False:
        bar = axes.figure.colorbar(
            image, ax=axes, shrink=0.9, pad=0.01, label=_words(trace.colorbar.title.text or "")
        )
        if trace.colorbar.tickvals is not None:
            bar.set_ticks(list(trace.colorbar.tickvals), labels=list(trace.colorbar.ticktext))


def _bar(trace: Any, axes: Axes, stacked: Any) -> Any:
    """Draw bars on those that stand there, each sign on its own side; return where they end."""
    sideways = trace.orientation == "h"
    ends, places = (trace.x, trace.y) if sideways else (trace.y, trace.x)
    values = np.nan_to_num(np.array(ends, dtype=float))
    above, below = stacked or (np.zeros(len(values)), np.zeros(len(values)))
    start = np.where(values >= 0, above, below)
    if trace.base is not None:
        start = np.array(trace.base, dtype=float)
    style = {"color": _colour(trace.marker.color), "label": _label(trace)}
    if sideways:
        axes.barh(places, values, left=start, height=trace.width or 0.8, **style)
    else:
        axes.bar(places, values, bottom=start, **style)
    return above + np.maximum(values, 0), below + np.minimum(values, 0)


def _scatter(trace: Any, axes: Axes) -> None:
    x, y = (np.array(values, dtype=float) for values in (trace.x, trace.y))
    if trace.fill:
        axes.fill(x, y, color=_colour(trace.fillcolor), linewidth=0)
        return
    if "lines" in trace.mode:
        steps = "steps-post" if trace.line.shape == "hv" else "default"
        axes.plot(
            x, y, color=_colour(trace.line.color), linewidth=0.7 * (trace.line.width or 2),
            linestyle=DASHES[trace.line.dash or "solid"], drawstyle=steps, label=_label(trace),
        )  # fmt: skip
    if "markers" not in trace.mode:
        return
    if trace.error_x.array is not None:
        ends = [list(trace.error_x.arrayminus), list(trace.error_x.array)]
        axes.errorbar(x, y, xerr=ends, fmt="none", ecolor=SOFT, elinewidth=1)
    one = trace.marker.color
    colours = [_colour(colour) for colour in (one if isinstance(one, tuple) else [one] * len(x))]
    symbol = trace.marker.symbol or "circle"
    size = np.array(trace.marker.size, dtype=float) ** 2 / 2.2
    hollow = {"facecolors": "none", "edgecolors": colours} if symbol == "circle-open" else None
    axes.scatter(
        x, y, s=size, marker=MARKERS[symbol], zorder=3,
        label=None if "lines" in trace.mode else _label(trace), **(hollow or {"c": colours}),
    )  # fmt: skip


def _finish(axes: Axes, x: Any, y: Any, legend: bool) -> None:
    for set_label, axis in ((axes.set_xlabel, x), (axes.set_ylabel, y)):
        set_label(_words(axis.title.text or ""), fontsize=8, color=SOFT)
    slanted = {"rotation": 55, "ha": "right", "rotation_mode": "anchor"} if x.tickangle else {}
    for set_ticks, axis, style in ((axes.set_xticks, x, slanted), (axes.set_yticks, y, {})):
        if axis.tickvals is not None:
            words = [_words(text, 30) for text in axis.ticktext or ()]
            set_ticks(list(axis.tickvals), words, fontsize=7, **style)
    if x.type == "log":
        axes.set_xscale("log")
        axes.minorticks_off()
    if y.type == "log":
        axes.set_yscale("log")
    if y.autorange == "reversed":
        axes.invert_yaxis()
    if y.range is not None:
        axes.set_ylim(*y.range)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend and axes.get_legend_handles_labels()[1] and not axes.images:
        axes.legend(fontsize=7, frameon=False)


def _label(trace: Any) -> str | None:
    return None if trace.showlegend is False or not trace.name else _words(trace.name)


def _colour(colour: str | None) -> tuple[float, ...]:
    """Return a colour of plotly's, #rrggbb or rgba(r,g,b,a), as matplotlib takes it."""
    from matplotlib.colors import to_rgba

    parts = re.fullmatch(r"rgba\((\d+),(\d+),(\d+),([\d.e-]+)\)", colour or "")
    if parts is None:
        return to_rgba(colour or SOFT)
    return (*(int(part) / 255 for part in parts.groups()[:3]), float(parts[4]))


def _words(text: object, longest: int = 90) -> str:
    """Return text that matplotlib shows as it is; it would read formulas between dollar signs."""
    words = " ".join(html.unescape(str(text)).split())
    short = words if len(words) <= longest else words[: longest - 1] + "…"
    return short.replace("$", r"\$")
