"""Data of the feature part: tables, contexts and dendrograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from saesteer.report.reading import Metrics, Row, groups, number, rows
from saesteer.saes.neuronpedia.links import SITE, embed_url

MOST_LEAVES = 400


class Context(NamedTuple):
    """A text where a feature fires, cut around the token that it fires on."""

    before: str
    token: str
    after: str
    activation: float | None


class FeatureRow(NamedTuple):
    """A feature in the table."""

    feature: int | None
    weight: float | None
    cluster: int | None
    description: str
    firing_positive: float | None
    firing_negative: float | None
    score: float | None
    contexts: tuple[Context, ...]
    url: str | None

    @property
    def embed(self) -> str | None:
        """What an iframe shows of the feature; None where its page is not Neuronpedia's."""
        there = self.url is not None and self.url.startswith(f"{SITE}/")
        return embed_url(self.url) if there and self.url is not None else None


class Leaf(NamedTuple):
    """A feature at the tip of the dendrogram."""

    feature: int
    cluster: int | None
    weight: float | None
    description: str


class Dendrogram(NamedTuple):
    """A cluster tree.

    Attributes:
        leaves: Features, top to bottom; leaf k stands at height k.
        links: For each join the (distance, height) of its four corners.
        clusters: For each join the cluster that all its leaves share; None where they differ.
    """

    leaves: tuple[Leaf, ...]
    links: tuple[tuple[tuple[float, float], ...], ...]
    clusters: tuple[int | None, ...]


def feature_data(metrics: Metrics, persona: str) -> list[FeatureRow]:
    """Take one persona's features, greatest |weight| first."""
    found = [_feature(row) for row in rows(groups(metrics, "features"), persona)]
    return sorted(found, key=lambda row: -abs(row.weight or 0.0))


def cluster_order(features: list[FeatureRow]) -> list[int]:
    """Return the clusters in the order of their strongest feature: the order of their colours."""
    return [*dict.fromkeys(row.cluster for row in features if row.cluster is not None)]


def dendrogram_data(metrics: Metrics, persona: str) -> Dendrogram | str:
    """Take one persona's cluster tree, or one sentence on why there is none to draw."""
    from scipy.cluster.hierarchy import dendrogram, is_valid_linkage

    record = groups(metrics, "linkage").get(persona)
    if not isinstance(record, Mapping) or not record.get("linkage"):
        return "No cluster tree was kept (a method that joins no clusters has none)."
    labels = record.get("labels") or []
    if len(labels) > MOST_LEAVES:
        return f"The tree of {len(labels)} features is too large to read; see the run's tables."
    try:
        features = [int(label) for label in labels]
        linkage = np.asarray(record["linkage"], dtype=float)
        fits = is_valid_linkage(linkage) and _is_tree(linkage, len(features))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        return "The cluster tree does not fit its labels, so it is not drawn."
    clusters = [_whole(value) for value in record.get("clusters") or []]
    clusters += [None] * (len(labels) - len(clusters))
    shared = _shared_clusters(linkage, clusters)
    # scipy hands back the name that is asked for, which here is the join itself.
    drawn: Any = dendrogram(linkage, no_plot=True, link_color_func=str)
    joins = [int(name) for name in drawn["color_list"]]
    links = tuple(
        tuple((float(x), float(y) / 10 - 0.5) for x, y in zip(xs, ys, strict=True))
        for xs, ys in zip(drawn["dcoord"], drawn["icoord"], strict=True)
    )
    known = {row.feature: row for row in feature_data(metrics, persona)}
    leaves = []
    for place in drawn["leaves"]:
        feature = features[place]
        row = known.get(feature)
        text = row.description if row else ""
        leaves.append(Leaf(feature, clusters[place], row.weight if row else None, text))
    return Dendrogram(tuple(leaves), links, tuple(shared[join] for join in joins))


def _is_tree(linkage: np.ndarray, n: int) -> bool:
    """Return whether each join takes two parts that exist by then and were not joined before."""
    parts = linkage[:, :2]
    there = parts < n + np.arange(len(linkage))[:, None]
    whole = len(linkage) == n - 1 and len(np.unique(parts)) == parts.size
    return bool(whole and there.all() and np.isfinite(linkage).all())


def _shared_clusters(linkage: np.ndarray, clusters: list[int | None]) -> dict[int, int | None]:
    """Return for each join the one cluster of all its leaves, or None."""
    below = [{cluster} for cluster in clusters]
    for a, b, *_ in linkage:
        below.append(below[int(a)] | below[int(b)])
    n = len(clusters)
    return {
        n + place: next(iter(found)) if len(found) == 1 else None
        for place, found in enumerate(below[n:])
    }


def _feature(row: Row) -> FeatureRow:
    contexts = tuple(_context(one) for one in rows(row, "contexts"))
    url = row.get("url")
    # Anything else, such as javascript:, would run in the reader's browser.
    safe = isinstance(url, str) and url.startswith(("https://", "http://"))
    return FeatureRow(
        _whole(row.get("feature")),
        number(row.get("weight")),
        _whole(row.get("cluster")),
        str(row.get("description") or ""),
        number(row.get("firing_positive")),
        number(row.get("firing_negative")),
        number(row.get("score")),
        contexts,
        str(url) if safe else None,
    )


def _context(row: Row) -> Context:
    text, token = str(row.get("text") or ""), str(row.get("token") or "")
    activation = number(row.get("activation"))
    places = [at for at in range(len(text)) if token and text.startswith(token, at)]
    if not places:
        return Context(text, "", "", activation)
    # A context holds more before its token than after it, so of several the later one is meant.
    at = min(places, key=lambda place: abs(place - 0.7 * len(text)))
    return Context(text[:at], token, text[at + len(token) :], activation)


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)
