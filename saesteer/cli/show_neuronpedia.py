"""What the commands on Neuronpedia print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from saesteer.report import Table
from saesteer.report.layout import Column
from saesteer.report.terminal import console, grid, heading, one_line, print_table

if TYPE_CHECKING:
    from saesteer.saes.neuronpedia import SourceId
    from saesteer.saes.neuronpedia.replies import TextSearch
    from saesteer.saes.table import FeatureCard, FeatureHit

TOKENS_SHOWN = 10
DESCRIPTION = Column("description", lambda hit: one_line(hit.description) or "no description")


def show_cards(cards: Sequence[FeatureCard]) -> None:
    """Print all that is known of features."""
    out = console()
    for card in cards:
        heading(out, f"feature {card.feature}: {one_line(card.description) or 'no description'}")
        out.print(f"described by {card.by}")
        if card.url is not None:
            out.print(card.url, soft_wrap=True)
        density = "unknown" if card.density is None else f"{card.density:.3%} of tokens"
        peak = "none" if card.max_activation is None else f"{card.max_activation:.3g}"
        out.print(f"fires on {density}, at most {peak}")
        known = (
            *(("fires most on", card.words), ("promotes", card.top_tokens)),
            ("demotes", card.bottom_tokens),
        )
        for verb, tokens in known:
            if tokens:
                out.print(f"{verb} {', '.join(map(_quoted, tokens[:TOKENS_SHOWN]))}")
        made = grid(("activation", "right"), "where it fires")
        for context in card.contexts:
            before, token, after = (re.sub(r"\s+", " ", part) for part in context.parts)
            text = Text.assemble(before, (token, "bold reverse"), after)
            made.add_row(f"{context.activation:.2f}", text)
        if card.contexts:
            out.print(made)


def show_hits(hits: Sequence[FeatureHit], words: str, note: str) -> None:
    """Print features that were found for some words."""
    out = console()
    heading(out, f"features for “{words}”" + (f" ({note})" if note else ""))
    if not hits:
        out.print("none")
        return
    columns = [
        Column("feature", lambda hit: hit.feature),
        Column("close", lambda hit: hit.similarity, ".2f"),
        DESCRIPTION,
    ]
    links = [hit.url or "" for hit in hits]
    print_table(out, Table.of(hits, columns, links=links, most=len(hits)))


def show_firing(found: TextSearch, place: SourceId, site: str) -> None:
    """Print the features that fire on a text, strongest first as the service has them."""
    from saesteer.saes.neuronpedia import dashboard_url

    tokens = dict(enumerate(found.tokens))
    columns = [
        Column("feature", lambda hit: hit.index),
        Column("largest", lambda hit: hit.largest, ".2f"),
        Column("on", lambda hit: _quoted(tokens.get(hit.at, ""))),
        DESCRIPTION,
    ]
    links = [dashboard_url(place, hit.index, site=site) for hit in found.result]
    print_table(console(), Table.of(found.result, columns, links=links, most=len(links)))


def _quoted(token: str) -> str:
    # Spaces are a part of it, and what a terminal would obey is spelled out.
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in token)
    return f'"{plain}"'
