"""A plotly figure as PNG: matplotlib draws the same traces, which needs no browser."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report.plots import AXIS, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

DPI = 130
DASHES = {"solid": "-", "dot": ":", "dash": "--"}
MARKERS = {"circle": "o", "circle-open": "o", "line-ns-open": "|"}


def save_png(figures: Sequence[Figure], path: Path) -> None:
    """Write figures of `plots` below each other as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    widths, heights = zip(*map(_size, figures), strict=True)
    canvas = Canvas(figsize=(max(widths), sum(heights)), layout="constrained")
    FigureCanvasAgg(canvas)
    parts = canvas.subfigures(len(figures), 1, squeeze=False, height_ratios=heights)
    for figure, part in zip(figures, parts[:, 0], strict=True):
        _draw(figure, part.subplots())
    canvas.savefig(path, dpi=DPI, format="png")


def _size(figure: Any) -> tuple[float, float]:
    ends = [
        (trace.x or [0])[0] + len(trace.z[0]) for trace in figure.data if trace.type == "heatmap"
    ]
    across = max(ends, default=0)
    wide = 3.0 + 0.25 * across if across else 8.0
    return min(17.0, max(7.0, wide)), min(14.0, max(2.2, (figure.layout.height or 400) / 95))


def _draw(figure: Any, axes: Axes) -> None:
    layout, ends = figure.layout, (0.0, 0.0)
    for trace in figure.data:
        if trace.type == "bar":
            ends = _bar(trace, axes, ends)
        elif trace.type == "heatmap":
            _heatmap(trace, axes)
        else:
            _scatter(trace, axes)
    for note in layout.annotations:
        axes.text(note.x, note.y, _words(note.text, 30), ha="center", va="bottom", fontsize=8)
    axes.tick_params(labelsize=7)
    slanted = {"rotation": 55, "ha": "right", "rotation_mode": "anchor"}
    for drawn, axis in ((axes.xaxis, layout.xaxis), (axes.yaxis, layout.yaxis)):
        drawn.set_label_text(_words(axis.title.text or ""), fontsize=8, color=SOFT)
        if axis.tickvals is not None:
            words = [_words(text, 30) for text in axis.ticktext or ()]
            drawn.set_ticks(list(axis.tickvals), words, **(slanted if axis.tickangle else {}))
    if layout.xaxis.type == "log":
        axes.set_xscale("log")
        axes.minorticks_off()
    if layout.yaxis.type == "log":
        axes.set_yscale("log")
    if layout.yaxis.autorange == "reversed":
        axes.invert_yaxis()
    axes.set(xlim=layout.xaxis.range, ylim=layout.yaxis.range)
    for line, axis, ends in (
        (axes.axvline, layout.xaxis, axes.get_xlim()),
        (axes.axhline, layout.yaxis, axes.get_ylim()),
    ):
        if axis.zeroline is not False and axis.type != "log" and min(ends) <= 0 <= max(ends):
            line(0, color=AXIS["zerolinecolor"], linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_visible(not axes.images)
    if layout.showlegend is not False and axes.get_legend_handles_labels()[1]:
        # Above the axes as on the page, where no title stands.
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3}
        axes.legend(fontsize=7, frameon=False, **({} if layout.title.text else above))
    if layout.title.text is not None:
        axes.set_title(_words(layout.title.text), fontsize=10, loc="left")


def _heatmap(trace: Any, axes: Axes) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    stops = [(float(at), colour) for at, colour in trace.colorscale]
    # A cell without a value is not one of the first colour.
    colours = LinearSegmentedColormap.from_list("scale", stops).with_extremes(bad="#e3e6eb")
    values = np.array(trace.z, dtype=float)
    left, bottom = (0 if start is None else start[0] for start in (trace.x, trace.y))
    extent = (left - 0.5, left + values.shape[1] - 0.5, bottom - 0.5, bottom + len(values) - 0.5)
    image = axes.imshow(
        values,
        cmap=colours,
        vmin=trace.zmin,
        vmax=trace.zmax,
        aspect="auto",
        origin="lower",
        extent=extent,
    )
    if trace.texttemplate:
        # Scales about 0 are dark at both ends, the others at one.
        middle, reach = (0.0, trace.zmax) if trace.zmin < 0 else (trace.zmin, trace.zmax)
        for (i, j), value in np.ndenumerate(values):
            dark = abs(value - middle) > 0.55 * ((reach - middle) or 1)
            words = _words(trace.text[i][j])
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": "w" if dark else "k"}
            axes.text(left + j, bottom + i, words, **style)
    if trace.showscale is not False:
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, aspect=40)
        bar.set_label(_words(trace.colorbar.title.text or ""), fontsize=8, color=SOFT)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
        if trace.colorbar.tickvals is not None:
            bar.set_ticks(list(trace.colorbar.tickvals), labels=list(trace.colorbar.ticktext))


def _bar(trace: Any, axes: Axes, ends: tuple[Any, Any]) -> tuple[Any, Any]:
    """Draw bars on those that stand there, each sign on its own side; return where they end."""
    sideways = trace.orientation == "h"
    lengths, places = (trace.x, trace.y) if sideways else (trace.y, trace.x)
    values = np.nan_to_num(np.array(lengths, dtype=float))
    start = np.where(values >= 0, *ends) if trace.base is None else np.array(trace.base)
    # matplotlib leaves no margin beside where a bar starts.
    axes.use_sticky_edges = trace.base is None
    style = {"color": _colour(trace.marker.color), "label": _label(trace)}
    if sideways:
        axes.barh(places, values, left=start, height=trace.width or 0.8, **style)
    else:
        axes.bar(places, values, bottom=start, **style)
    return ends[0] + np.maximum(values, 0), ends[1] + np.minimum(values, 0)


def _scatter(trace: Any, axes: Axes) -> None:
    x, y = (np.array(values, dtype=float) for values in (trace.x, trace.y))
    if trace.fill:
        axes.fill(x, y, color=_colour(trace.fillcolor), linewidth=0)
        return
    if "lines" in trace.mode:
        axes.plot(
            x,
            y,
            color=_colour(trace.line.color),
            linewidth=0.7 * (trace.line.width or 2),
            linestyle=DASHES[trace.line.dash or "solid"],
            drawstyle="steps-post" if trace.line.shape == "hv" else "default",
            label=_label(trace),
        )
    if "markers" not in trace.mode:
        return
    if trace.error_x.array is not None:
        ends = [trace.error_x.arrayminus, trace.error_x.array]
        axes.errorbar(x, y, xerr=ends, fmt="none", ecolor=SOFT, elinewidth=1)
    colour, symbol = _colour(trace.marker.color), trace.marker.symbol or "circle"
    hollow = symbol == "circle-open"
    axes.scatter(
        x,
        y,
        s=trace.marker.size**2 / 2.2,
        marker=MARKERS[symbol],
        facecolors="none" if hollow else colour,
        edgecolors=colour if hollow else None,
        zorder=3,
        label=None if "lines" in trace.mode else _label(trace),
    )


def _label(trace: Any) -> str | None:
    return None if trace.showlegend is False or not trace.name else _words(trace.name)


def _colour(colour: str | None) -> tuple[float, float, float, float]:
    """Return a colour of plotly's, #rrggbb or rgba(r,g,b,a), as matplotlib takes it."""
    from matplotlib.colors import to_rgba

    parts = re.fullmatch(r"rgba\((\d+),(\d+),(\d+),([\d.e-]+)\)", colour or "")
    if parts is None:
        return to_rgba(colour or SOFT)
    red, green, blue = (int(part) / 255 for part in parts.groups()[:3])
    return red, green, blue, float(parts[4])


def _words(text: object, longest: int = 90) -> str:
    """Return text that matplotlib shows as it is; it would read formulas between dollar signs."""
    words = " ".join(html.unescape(str(text)).split())
    short = words if len(words) <= longest else words[: longest - 1] + "…"
    return short.replace("$", r"\$")
