"""The page's colours: headline and baseline stand out, the other methods go by kind."""

from __future__ import annotations

from collections.abc import Sequence

from saesteer.report.reading import Method

HEADLINE, BASELINE = "#2f5fd0", "#e0672b"
NULL, GRID, INK, SOFT = "#c3c8d0", "#e8eaee", "#1f2630", "#667080"
# Colours of the others, by kind; several of a kind take the next shade.
KINDS = {
    "sae": ("#0e8a8a", "#5b8def", "#58b5b0", "#7d6fd0", "#8fb4e8", "#3f6f8f"),
    "dense": ("#b8860b", "#c26a77", "#a0724f", "#d9a441", "#8f6b8f"),
    "prompt": ("#3b8b3b", "#79b35c"),
    "null": ("#8b93a0", "#b3bac4"),
}
# Clusters, in the order of their strongest feature; a long list starts over.
CLUSTERS = (
    "#2f5fd0",
    "#e0672b",
    "#0e8a8a",
    "#a64ca6",
    "#b8860b",
    "#c23b5a",
    "#3b8b3b",
    "#7d6fd0",
    "#8a6d4f",
    "#4a90c2",
)
# Purple to green through white, told apart with any kind of colour vision.
AGAINST, TOWARDS = "#8e4ea8", "#1f8a4c"
DIVERGING = (
    (0.0, "#6d2f86"),
    (0.25, "#b58cc6"),
    (0.5, "#fbfbfa"),
    (0.75, "#86c79a"),
    (1.0, "#12703a"),
)


def method_colours(methods: Sequence[Method], headline: object, baseline: object) -> dict[str, str]:
    """Return a colour for each method."""
    used: dict[str, int] = {}
    colours = {}
    for method in methods:
        if method.name in (headline, baseline):
            colours[method.name] = HEADLINE if method.name == headline else BASELINE
            continue
        shades = KINDS.get(method.kind, KINDS["dense"])
        place = used.get(method.kind, 0)
        used[method.kind] = place + 1
        colours[method.name] = shades[place % len(shades)]
    return colours


def cluster_colours(clusters: Sequence[int]) -> dict[int, str]:
    """Return a colour for each cluster."""
    return {cluster: CLUSTERS[place % len(CLUSTERS)] for place, cluster in enumerate(clusters)}


def faint(colour: str, opacity: float) -> str:
    """Return a colour (#rrggbb) with an opacity."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
