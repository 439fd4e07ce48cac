"""Figures of a run; their data stands apart from the drawing, so that it can be tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from saesteer.methods.registry import method_entry

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#9ca3af"
MEASURED = ("vector", "difference_in_means")


class EffectPoint(NamedTuple):
    """One vector's effect with its interval."""

    label: str
    effect: float
    low: float
    high: float


class PropensityData(NamedTuple):
    """What the propensity figure shows.

    Attributes:
        curves: For each vector the (multiple of matched strength, mean margin) points.
        effects: Effects with intervals, vectors that missed the KL target left out.
        null: Effects of the random directions that met the KL target.
        unsteered: The margin without steering, nats per token.
    """

    curves: dict[str, list[tuple[float, float]]]
    effects: list[EffectPoint]
    null: list[float]
    unsteered: float


def propensity_data(metrics: dict[str, Any]) -> PropensityData:
    """Take the figure's data out of a run's `metrics.json`."""
    labels = {key: method_entry(metrics[key]["method"]).label for key in MEASURED}
    curves = {
        labels["vector"]: metrics["curve"],
        labels["difference_in_means"]: metrics["curve_difference_in_means"],
    }
    effects = [
        EffectPoint(label, effect["effect"], effect["low"], effect["high"])
        for key, label in labels.items()
        if (effect := metrics[key]["effect"]) is not None
    ]
    null = [r["effect"]["effect"] for r in metrics["random_directions"] if r["effect"] is not None]
    points = {
        label: [(row["multiple"], row["margin"]) for row in curve]
        for label, curve in curves.items()
    }
    return PropensityData(points, effects, null, metrics["unsteered_margin"])


def propensity_figure(data: PropensityData, title: str) -> Figure:
    """Draw margin against strength, and every vector's effect beside the random null."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        cols=2,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.12,
        subplot_titles=("Margin by strength", "Effect E at equal KL"),
    )
    # One curve where the run's own method is its baseline.
    colours = dict(zip(data.curves, (BLUE, ORANGE), strict=False))
    for label, points in data.curves.items():
        x, y = zip(*points, strict=True) if points else ((), ())
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="lines+markers", name=label, line={"color": colours[label]}),
            row=1,
            col=1,
        )
    figure.add_hline(
        data.unsteered,
        line={"dash": "dot", "color": GREY},
        annotation_text="unsteered",
        row=1,  # type: ignore[arg-type]
        col=1,  # type: ignore[arg-type]
    )
    for point in data.effects:
        figure.add_trace(
            go.Scatter(
                x=[point.label],
                y=[point.effect],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [point.high - point.effect],
                    "arrayminus": [point.effect - point.low],
                },
                mode="markers",
                marker={"size": 12, "color": colours[point.label]},
                showlegend=False,
            ),
            row=1,
            col=2,
        )
    if data.null:
        figure.add_trace(
            go.Scatter(
                x=[f"{len(data.null)} random"] * len(data.null),
                y=data.null,
                mode="markers",
                marker={"size": 7, "color": GREY, "opacity": 0.7},
                showlegend=False,
            ),
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="multiple of the strength at the KL target", row=1, col=1)
    figure.update_yaxes(title_text="nats per token", row=1, col=1)
    figure.update_layout(
        title={"text": title, "x": 0.02},
        template="plotly_white",
        width=1000,
        height=430,
        legend={"orientation": "h", "x": 0.02, "y": 0.99},
        margin={"l": 60, "r": 20, "t": 80, "b": 60},
    )
    return figure
