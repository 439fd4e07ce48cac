"""The cluster tree, drawn with its features' names at the tips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from saesteer.report.drawing import blank_figure, plain
from saesteer.report.named_features import Dendrogram
from saesteer.report.palette import AGAINST, GRID, SOFT, TOWARDS
from saesteer.report.reading import show

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LEAF_HEIGHT = 19
HIDDEN = 60


def dendrogram_figure(data: Dendrogram, colours: Mapping[int, str]) -> Figure:
    """Draw a cluster tree, root on the left; dots are weights, their area the size.

    Args:
        data: The tree.
        colours: A colour for each cluster.
    """
    n = len(data.leaves)
    labelled = n <= HIDDEN
    figure = blank_figure(height=90 + (LEAF_HEIGHT if labelled else 8) * n)
    _links(figure, data, colours)
    _weights(figure, data)
    furthest = max((x for link in data.links for x, _ in link), default=1.0) or 1.0
    figure.update_xaxes(
        title_text="distance", range=[1.01 * furthest, 0], zeroline=False, showgrid=False
    )
    figure.update_yaxes(
        side="right",
        tickvals=list(range(n)) if labelled else [],
        ticktext=[plain(f"{leaf.feature}  {leaf.description}", 58) for leaf in data.leaves],
        tickfont={"size": 11.5},
        ticks="",
        ticklabelstandoff=10,
        range=[n - 0.4, -0.6],
        showgrid=labelled,
        gridcolor=GRID,
        griddash="dot",
        zeroline=False,
        showline=False,
    )
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 12}},
        margin={"l": 10, "r": 10, "t": 34, "b": 46},
    )
    return figure


def _links(figure: Figure, data: Dendrogram, colours: Mapping[int, str]) -> None:
    drawn = Counter(data.clusters)
    for cluster in sorted(drawn, key=lambda found: (found is not None, found or 0)):
        joins = [
            link for link, own in zip(data.links, data.clusters, strict=True) if own == cluster
        ]
        figure.add_scatter(
            x=[v for link in joins for v in (*(x for x, _ in link), None)],
            y=[v for link in joins for v in (*(y for _, y in link), None)],
            mode="lines",
            line={
                "color": SOFT if cluster is None else colours.get(cluster, SOFT),
                "width": 1.2 if cluster is None else 2.2,
            },
            name="between clusters" if cluster is None else f"cluster {cluster}",
            hoverinfo="skip",
        )


def _weights(figure: Figure, data: Dendrogram) -> None:
    heaviest = max((abs(leaf.weight) for leaf in data.leaves if leaf.weight), default=1.0)
    weighted = [(y, leaf) for y, leaf in enumerate(data.leaves) if leaf.weight]
    figure.add_scatter(
        x=[0.0] * len(weighted),
        y=[y for y, _ in weighted],
        mode="markers",
        marker={
            "size": [4 + 12 * (abs(leaf.weight or 0) / heaviest) ** 0.5 for _, leaf in weighted],
            "color": [TOWARDS if (leaf.weight or 0) > 0 else AGAINST for _, leaf in weighted],
            "line": {"width": 1, "color": "white"},
            "opacity": 1,
        },
        cliponaxis=False,
        showlegend=False,
        customdata=[
            f"{leaf.feature}: weight {show(leaf.weight, '+.3f')}, {plain(leaf.description, 90)}"
            for _, leaf in weighted
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
