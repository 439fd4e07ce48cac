"""Figures of corruption runs: scores by task and program, with plotly and as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from saesteer.report.drawing import blank_figure, plain
from saesteer.report.palette import CLUSTERS
from saesteer.report.reading import show, spoken

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_LABELS = 40
FLOOR = 0.01
# Light to dark: little loss to much.
COLOURS = ("#f4f7fb", "#cfdcf0", "#93b1de", "#5b7fc4", "#37509a", "#272a63", "#170f33")
DPI = 130


class ScoreMap(NamedTuple):
    """One score by task and program.

    Attributes:
        title: What is shown.
        axis: What changes from program to program.
        tasks: The tasks.
        programs: The programs.
        values: The score.
        losses: Whether it is a loss, shown on a log scale, or a share.
    """

    title: str
    axis: str
    tasks: tuple[str, ...]
    programs: tuple[str, ...]
    values: Float[np.ndarray, "task program"]
    losses: bool


def score_maps(metrics: Mapping[str, Any]) -> dict[str, list[ScoreMap]]:
    """Return for each family its losses and its accuracies, the intact model at the end."""
    tasks = tuple(metrics["tasks"])
    maps = {}
    first = next(iter(metrics["programs"]))
    for name, family in metrics["families"].items():
        programs = [p for p in family["programs"] if p != first]
        own = [metrics["programs"][program]["tasks"] for program in [*programs, first]]
        labels = (*programs, first)
        maps[name] = []
        for score, what in (("loss", "Loss, nats per answer token"), ("accuracy", "Accuracy")):
            values = np.array([[record[task][score] for record in own] for task in tasks], float)
            title = f"{what}: {spoken(name)}"
            maps[name].append(
                ScoreMap(title, family["axis"], tasks, labels, values, score == "loss")
            )
    return maps


def score_figure(data: ScoreMap) -> Figure:
    """Draw a map; the exact values are on hover."""
    import plotly.graph_objects as go

    tasks = [plain(spoken(task), 30) for task in data.tasks]
    programs = [plain(program, 30) for program in data.programs]
    figure = blank_figure(height=150 + 26 * len(tasks))
    low, high = _limits(data)
    ticks = [t for t in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0) if low <= math.log10(t) <= high]
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "len": 0.95}
    if data.losses:
        bar |= {"tickvals": [math.log10(t) for t in ticks], "ticktext": [f"{t:g}" for t in ticks]}
    hover = [
        [
            f"{task}, {program}: {show(float(value), '.3f')}"
            for program, value in _row(programs, row)
        ]
        for task, row in zip(tasks, data.values, strict=True)
    ]
    colours = COLOURS if data.losses else COLOURS[::-1]
    stops = [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]
    figure.add_trace(
        go.Heatmap(
            z=_shown(data).tolist(),
            zmin=low,
            zmax=high,
            colorscale=stops,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            xgap=1,
            ygap=1,
            colorbar=bar,
        )
    )
    places = _ticks(len(programs))
    figure.update_xaxes(
        title_text=plain(data.axis),
        tickvals=places,
        ticktext=[programs[place] for place in places],
        showgrid=False,
        zeroline=False,
        tickangle=-50,
    )
    figure.update_yaxes(
        tickvals=list(range(len(tasks))),
        ticktext=tasks,
        autorange="reversed",
        showgrid=False,
        zeroline=False,
    )
    title = {"text": plain(data.title, 90), "x": 0, "xref": "paper", "font": {"size": 14}}
    figure.update_layout(title=title, margin={"l": 10, "r": 10, "t": 44, "b": 10})
    return figure


def depth_figure(metrics: Mapping[str, Any]) -> Figure:
    """Draw accuracy over the number of layers kept, as a share of the intact model's."""
    keep = metrics["families"]["keep"]["programs"]
    figure = blank_figure(height=430)
    solved = [task for task, right in metrics["first_right"].items() if right["layers"] is not None]
    for place, task in enumerate(solved):
        intact = metrics["tasks"][task]["accuracy"]
        y = [metrics["programs"][p]["tasks"][task]["accuracy"] / intact for p in keep]
        figure.add_scatter(
            x=list(range(len(keep))),
            y=y,
            mode="lines",
            name=plain(spoken(task)),
            line={"color": CLUSTERS[place % len(CLUSTERS)], "width": 2.2},
            hovertemplate="%{y:.0%}",
        )
    figure.update_xaxes(title_text="layers kept")
    figure.update_yaxes(title_text="accuracy, share of the intact model's", tickformat=".0%")
    figure.update_layout(
        hovermode="x unified",
        legend={"x": 1.02, "y": 1, "font": {"size": 12}},
        margin={"l": 62, "r": 10, "t": 16, "b": 56},
    )
    return figure


def score_picture(maps: Sequence[ScoreMap], path: Path) -> None:
    """Write maps below each other as PNG; matplotlib draws them, which needs no browser."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure as Canvas

    n_tasks, n_programs = maps[0].values.shape
    width = min(18.0, max(6.5, 3.0 + 0.24 * n_programs))
    height = min(16.0, len(maps) * (1.7 + 0.22 * n_tasks))
    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(len(maps), 1, squeeze=False)
    for axes, data in zip(grid[:, 0], maps, strict=True):
        colours = LinearSegmentedColormap.from_list(
            "loss", list(COLOURS if data.losses else COLOURS[::-1])
        )
        low, high = _limits(data)
        image = axes.imshow(_shown(data), aspect="auto", cmap=colours, vmin=low, vmax=high)
        axes.set_title(_said(data.title), fontsize=10, loc="left")
        axes.set_yticks(range(n_tasks), [_said(spoken(t)) for t in data.tasks], fontsize=7.5)
        places = _ticks(n_programs)
        labels = [_said(data.programs[place]) for place in places]
        axes.set_xticks(places, labels, fontsize=7, rotation=55, ha="right")
        bar = canvas.colorbar(image, ax=axes, pad=0.01)
        if data.losses:
            ticks = [t for t in (0.01, 0.1, 1.0, 10.0, 100.0) if low <= math.log10(t) <= high]
            bar.set_ticks([math.log10(t) for t in ticks], labels=[f"{t:g}" for t in ticks])
    canvas.savefig(path, dpi=DPI, format="png")


def _row(programs: Sequence[str], row: Float[np.ndarray, " program"]) -> Any:
    return zip(programs, row, strict=True)


def _shown(data: ScoreMap) -> Float[np.ndarray, "task program"]:
    return np.log10(np.maximum(data.values, FLOOR)) if data.losses else data.values


def _limits(data: ScoreMap) -> tuple[float, float]:
    if not data.losses:
        return 0.0, 1.0
    shown = _shown(data)
    shown = shown[np.isfinite(shown)]
    return (float(shown.min()), float(shown.max()) + 1e-6) if shown.size else (-2.0, 2.0)


def _ticks(n: int) -> list[int]:
    step = max(1, math.ceil(n / MOST_LABELS))
    # The last one is the intact model.
    return [*range(0, n - 1, step), n - 1]


def _said(text: str) -> str:
    # matplotlib reads dollars as mathematics.
    return " ".join(str(text).split())[:40].replace("$", r"\$")
