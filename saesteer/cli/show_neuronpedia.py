"""What the commands on Neuronpedia print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from saesteer.cli.show import console, heading, number, one_line, show_links, table

if TYPE_CHECKING:
    from saesteer.saes.neuronpedia import SourceId
    from saesteer.saes.neuronpedia.replies import TextSearch
    from saesteer.saes.table import FeatureCard, FeatureHit

TOKENS_SHOWN = 10


def show_cards(cards: Sequence[FeatureCard]) -> None:
    """Print all that is known of features."""
    out = console()
    for card in cards:
        heading(out, f"feature {card.feature}: {one_line(card.description) or 'no description'}")
        out.print(f"described by {card.by}")
        if card.url is not None:
            out.print(card.url, soft_wrap=True)
        density = "unknown" if card.density is None else f"{card.density:.3%} of tokens"
        peak = number(card.max_activation, ".3g")
        out.print(f"fires on {density}, at most {peak}")
        for verb, tokens in (("promotes", card.top_tokens), ("demotes", card.bottom_tokens)):
            if tokens:
                out.print(f"{verb} {', '.join(map(_quoted, tokens[:TOKENS_SHOWN]))}")
        made = table(("activation", "right"), "where it fires")
        for context in card.contexts:
            text = Text(one_line(context.text))
            token = one_line(context.token)
            if token:
                text.highlight_words([token], style="bold reverse")
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
    made = table(("feature", "right"), ("close", "right"), "description")
    for hit in hits:
        close = "" if hit.similarity is None else number(hit.similarity, ".2f")
        made.add_row(str(hit.feature), close, Text(one_line(hit.description) or "no description"))
    out.print(made)
    show_links(out, ((hit.feature, hit.url) for hit in hits))


def show_firing(found: TextSearch, place: SourceId, site: str) -> None:
    """Print the features that fire on a text, strongest first as the service has them."""
    from saesteer.saes.neuronpedia import dashboard_url

    out = console()
    made = table(("feature", "right"), ("largest", "right"), "on", "description")
    for hit in found.result:
        token = found.tokens[hit.at] if 0 <= hit.at < len(found.tokens) else ""
        words = Text(one_line(hit.description) or "no description")
        made.add_row(str(hit.index), f"{hit.largest:.2f}", Text(_quoted(token)), words)
    out.print(made)
    links = ((hit.index, dashboard_url(place, hit.index, site=site)) for hit in found.result)
    show_links(out, links)


def _quoted(token: str) -> str:
    # Spaces are a part of it, and what a terminal would obey is spelled out.
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in token)
    return f'"{plain}"'
