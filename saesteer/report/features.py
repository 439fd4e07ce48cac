"""What a vector is made of: its features with what they stand for, and their cluster tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report import plots
from saesteer.report.layout import Bar, Column, Context, Described, Mark, Table
from saesteer.report.wording import show
from saesteer.saes.neuronpedia.links import SITE, embed_url
from saesteer.saes.table import FeatureContext

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_LEAVES, MOST_NAMED = 400, 60
NAMED_HEIGHT, PLAIN_HEIGHT = 19, 8


def cluster_colours(clusters: Sequence[int | None]) -> dict[int, str]:
    """Return a colour for each cluster, in the order in which they come."""
    known = dict.fromkeys(cluster for cluster in clusters if cluster is not None)
    return {c: plots.SERIES[place % len(plots.SERIES)] for place, c in enumerate(known)}


def feature_table(
    features: Sequence[Mapping[str, Any]], colours: Mapping[int, str], **more: Any
) -> Table:
    """Return a vector's features, strongest first, with where they fire and what they stand for."""
    rows = sorted(features, key=lambda row: -abs(row["weight"] or 0.0))
    heaviest = max((abs(row["weight"] or 0.0) for row in rows), default=0.0) or 1.0

    def cluster(row: Mapping[str, Any]) -> Mark | None:
        name = row["cluster"]
        return None if name is None else Mark(str(name), colours[name])

    fires = "share of texts of the positive and the negative side where it fires"
    columns = (
        *("feature", "weight:+.3f"),
        Column("size", lambda row: Bar(row["weight"], heaviest)),
        Column("cluster", cluster),
        Column("description", _described),
        Column("fires +/-", _firing, hint=fires),
        Column("score", "score", "+.2f", "how clearly it separates the sides"),
    )
    printed = ("feature", "weight", "cluster", "description", "fires +/-", "score")
    links = [row.get("url") or "" for row in rows]
    return Table.of(rows, columns, printed=printed, links=links, **more)


def _firing(row: Mapping[str, Any]) -> str:
    return "/".join(show(row[f"firing_{side}"], ".0%") for side in ("positive", "negative"))


def _described(row: Mapping[str, Any]) -> Described:
    url = row.get("url")
    embed = embed_url(url) if url is not None and url.startswith(f"{SITE}/") else None
    return Described(
        row["description"] or "", [_context(one) for one in row.get("contexts", ())], embed
    )


def _context(row: Mapping[str, Any]) -> Context:
    return Context(*FeatureContext(**row).parts, row["activation"])


def no_tree(record: Mapping[str, Any]) -> str:
    """Return why a cluster tree is not drawn; nothing where it can be."""
    if not record:
        return "No cluster tree was kept (a method that joins no clusters has none)."
    n = len(record["labels"])
    if n < 2:
        return "A tree needs two features; only one was clustered."
    if n > MOST_LEAVES:
        return f"The tree of {n} features is too large to read; see the run's tables."
    return ""


def cluster_tree(
    record: Mapping[str, Any], features: Sequence[Mapping[str, Any]], colours: Mapping[int, str]
) -> Figure:
    """Draw a cluster tree, root on the left; dots are weights, their area the size.

    The record holds scipy's linkage, the features at its leaves (labels) and their clusters.
    """
    from scipy.cluster.hierarchy import dendrogram

    labels, clusters = record["labels"], record["clusters"]
    shared = _shared_clusters(record["linkage"], clusters)
    # scipy hands back the name that is asked for, which here is the join itself.
    drawn: Any = dendrogram(np.array(record["linkage"]), no_plot=True, link_color_func=str)
    known = {row["feature"]: row for row in features}
    leaves = [known.get(labels[at], {"feature": labels[at]}) for at in drawn["leaves"]]
    named = len(leaves) <= MOST_NAMED
    figure = plots.blank(90 + (NAMED_HEIGHT if named else PLAIN_HEIGHT) * len(leaves))
    _joins(figure, drawn, [shared[int(name)] for name in drawn["color_list"]], colours)
    _weights(figure, leaves)
    furthest = max((x for xs in drawn["dcoord"] for x in xs), default=1.0) or 1.0
    figure.update_xaxes(
        title_text="distance", range=[1.01 * furthest, 0], zeroline=False, showgrid=False
    )
    words = [f"{row['feature']}  {row.get('description') or ''}" for row in leaves]
    figure.update_yaxes(
        side="right",
        tickvals=list(range(len(leaves))) if named else [],
        ticktext=[plots.plain(text, 58) for text in words],
        tickfont={"size": 11.5},
        ticks="",
        ticklabelstandoff=10,
        range=[len(leaves) - 0.4, -0.6],
        showgrid=named,
        griddash="dot",
        zeroline=False,
        showline=False,
    )
    figure.update_layout(margin={"t": 34, "b": 46})
    return figure


def _shared_clusters(
    linkage: Sequence[Sequence[float]], clusters: Sequence[int]
) -> dict[int, int | None]:
    """Return for each join the one cluster of all its leaves, or None."""
    below = [{cluster} for cluster in clusters]
    for a, b, *_ in linkage:
        below.append(below[int(a)] | below[int(b)])
    n = len(clusters)
    return {
        n + place: next(iter(found)) if len(found) == 1 else None
        for place, found in enumerate(below[n:])
    }


def _joins(
    figure: Figure,
    drawn: Mapping[str, Any],
    clusters: Sequence[int | None],
    colours: Mapping[int, str],
) -> None:
    order = sorted(Counter(clusters), key=lambda found: (found is not None, found or 0))
    for cluster in order:
        own = [place for place, other in enumerate(clusters) if other == cluster]
        figure.add_scatter(
            x=[v for place in own for v in (*drawn["dcoord"][place], None)],
            # scipy sets leaf k at height 10 k + 5.
            y=[v for i in own for v in (*(y / 10 - 0.5 for y in drawn["icoord"][i]), None)],
            mode="lines",
            line={
                "color": plots.SOFT if cluster is None else colours.get(cluster, plots.SOFT),
                "width": 1.2 if cluster is None else 2.2,
            },
            name="between clusters" if cluster is None else f"cluster {cluster}",
            hoverinfo="skip",
        )


def _weights(figure: Figure, leaves: Sequence[Mapping[str, Any]]) -> None:
    weighted = [(y, row) for y, row in enumerate(leaves) if row.get("weight")]
    heaviest = max((abs(row["weight"]) for _, row in weighted), default=1.0)
    figure.add_scatter(
        x=[0.0] * len(weighted),
        y=[y for y, _ in weighted],
        mode="markers",
        marker={
            "size": [4 + 12 * (abs(row["weight"]) / heaviest) ** 0.5 for _, row in weighted],
            "color": [plots.TOWARDS if row["weight"] > 0 else plots.AGAINST for _, row in weighted],
            "line": {"width": 1, "color": "white"},
            "opacity": 1,
        },
        cliponaxis=False,
        showlegend=False,
        customdata=[
            f"{row['feature']}: weight {show(row['weight'], '+.3f')}, "
            f"{plots.plain(row['description'] or '', 90)}"
            for _, row in weighted
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
