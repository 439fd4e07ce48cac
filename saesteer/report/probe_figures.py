"""Figures of a probe run: every layer's confusion matrix, and the scores by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

COLUMNS = 6


class ConfusionPanel(NamedTuple):
    """One layer's confusion matrix.

    Attributes:
        title: Layer and macro-F1.
        counts: True class by predicted class; they add up to the test set.
        shares: The same over each true class, which the colours show.
    """

    title: str
    counts: Int[np.ndarray, "true predicted"]
    shares: Float[np.ndarray, "true predicted"]


def confusion_panels(metrics: dict[str, Any]) -> list[ConfusionPanel]:
    """Take every layer's panel out of a run's `metrics.json`."""
    panels = []
    for record in metrics["layers"]:
        counts = np.array(record["confusion"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        f1 = record["macro_f1"]["value"]
        figure = "-" if f1 is None else f"{f1:.2f}"
        panels.append(ConfusionPanel(f"layer {record['layer']}: F1 {figure}", counts, shares))
    return panels


def layer_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """Return one row per layer with its scores and intervals."""
    import pandas as pd

    rows = []
    for record in metrics["layers"]:
        row = {"layer": record["layer"], "site": record["site"], "c": record["c"]}
        for name in ("accuracy", "macro_f1", "auroc"):
            row |= {name: record[name]["value"]}
            row |= {f"{name}_{end}": record[name][end] for end in ("low", "high")}
        if "control" in record:
            row["control_accuracy"] = record["control"]["accuracy"]["value"]
            row["control_auroc"] = record["control"]["auroc"]["value"]
            row["selectivity"] = record["selectivity"]
        if "checks" in record:
            row["checks"] = record["checks"]["right"] / record["checks"]["n"]
        rows.append(row)
    return pd.DataFrame(rows).set_index("layer")


def confusion_figure(metrics: dict[str, Any]) -> Figure:
    """Draw every layer's confusion matrix in one figure, and the scores by layer above it."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = confusion_panels(metrics)
    short = short_names(metrics["classes"])
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[panel.title for panel in panels],
        horizontal_spacing=0.03,
        vertical_spacing=0.2 / rows,
    )
    for place, panel in enumerate(panels):
        figure.add_trace(
            go.Heatmap(
                z=panel.shares,
                x=short,
                y=short,
                text=panel.counts,
                texttemplate="%{text}",
                zmin=0,
                zmax=1,
                colorscale="Blues",
                showscale=place == 0,
                colorbar={"title": "share of<br>true class", "len": 0.5},
                hovertemplate="true %{y}, predicted %{x}: %{text} (%{z:.0%})<extra></extra>",
            ),
            row=place // columns + 1,
            col=place % columns + 1,
        )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 9})
    figure.update_xaxes(tickfont={"size": 9})
    figure.update_annotations(font={"size": 11})
    figure.update_layout(
        title={"text": _title(metrics), "x": 0.02},
        template="plotly_white",
        width=190 * columns + 110,
        height=175 * rows + 110,
        margin={"l": 50, "r": 20, "t": 90, "b": 30},
    )
    return figure


def confusion_page(metrics: dict[str, Any], path: Path) -> None:
    """Write the figure as a page that opens offline."""
    confusion_figure(metrics).write_html(path, include_plotlyjs=True, config={"displaylogo": False})


def confusion_picture(metrics: dict[str, Any], path: Path) -> None:
    """Write the figure as PNG; matplotlib draws it, which needs no browser."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    panels = confusion_panels(metrics)
    short = short_names(metrics["classes"])
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Canvas(figsize=(1.9 * columns + 0.6, 1.85 * rows + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    image = None
    for place, cell in enumerate(grid.flat):
        if place >= len(panels):
            cell.axis("off")
            continue
        panel = panels[place]
        image = cell.imshow(panel.shares, cmap="Blues", vmin=0, vmax=1)
        cell.set_title(panel.title, fontsize=8)
        cell.set_xticks(range(len(short)), short, fontsize=7)
        cell.set_yticks(range(len(short)), short, fontsize=7)
        for (i, j), count in np.ndenumerate(panel.counts):
            dark = panel.shares[i, j] > 0.55
            cell.text(
                j, i, f"{count}", ha="center", va="center", fontsize=7,
                color="white" if dark else "black",
            )  # fmt: skip
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.4, label="share of true class")
    figure.suptitle(_title(metrics), fontsize=10)
    figure.supxlabel("predicted", fontsize=8)
    figure.supylabel("true", fontsize=8)
    figure.savefig(path, dpi=120, format="png")


def short_names(classes: Sequence[str]) -> list[str]:
    """Return the shortest beginnings, three letters or more, that tell the classes apart."""
    longest = max(map(len, classes))
    for length in range(3, longest + 1):
        short = [name[:length] for name in classes]
        if len(set(short)) == len(classes):
            return short
    return list(classes)


def _title(metrics: dict[str, Any]) -> str:
    return (
        f"{metrics['name']}: {metrics['model']}, {metrics['n_test']:,} test texts "
        f"(rows true, columns predicted)"
    )
