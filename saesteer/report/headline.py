"""The headline in words that claim no more than the intervals allow."""

from __future__ import annotations

from typing import NamedTuple

from saesteer.report.effects import Headline
from saesteer.report.reading import Point, listing, show


class Piece(NamedTuple):
    """A piece of the headline's sentence; figures have the place in `metrics.json` as a key."""

    text: str
    key: str = ""
    value: float | None = None


class Remark(NamedTuple):
    """A sentence below the headline; the verdict is good, open or bad."""

    verdict: str
    text: str


def headline_pieces(data: Headline) -> list[Piece]:
    """Return the headline's sentence; joined, the pieces' texts are plain text."""
    key = f"summary/{data.method.name}/{data.kl_target:g}"
    who = "one persona" if data.n_personas == 1 else f"{data.n_personas} personas"
    pieces = [
        Piece("With "),
        Piece(data.method.label, "method"),
        Piece(f", held-out statements of {who} move by "),
        Piece(show(data.effect.value), f"{key}/effect", data.effect.value),
        Piece(f" nats per token at KL {data.kl_target:g}"),
    ]
    if data.effect.value is None:
        return [
            Piece("With "),
            Piece(data.method.label, "method"),
            Piece(f", KL {data.kl_target:g} was not reached, so there is no effect to report."),
        ]
    if data.effect.low is not None:
        pieces += _interval(data.effect, key, "")
    if data.baseline is None or data.ratio.value is None:
        return [*pieces, Piece(".")]
    pieces += [
        Piece(", "),
        Piece(f"{show(data.ratio.value)} times", f"{key}/ratio", data.ratio.value),
        Piece(" as far as with "),
        Piece(data.baseline.label, "baseline"),
    ]
    if data.ratio.low is not None:
        pieces += _interval(data.ratio, key, "ratio_")
    return [*pieces, Piece(".")]


def headline_text(data: Headline) -> str:
    """Return the headline's sentence as plain text."""
    return "".join(piece.text for piece in headline_pieces(data))


def headline_remarks(data: Headline) -> list[Remark]:
    """Return what the headline's intervals and null do and do not show."""
    return [
        remark
        for remark in (_effect_remark(data), _ratio_remark(data), null_remark(data))
        if remark is not None
    ]


def _interval(point: Point, key: str, prefix: str) -> list[Piece]:
    return [
        Piece(" (95% interval "),
        Piece(show(point.low), f"{key}/{prefix}low", point.low),
        Piece(" to "),
        Piece(show(point.high), f"{key}/{prefix}high", point.high),
        Piece(")"),
    ]


def _effect_remark(data: Headline) -> Remark | None:
    effect = data.effect
    if effect.value is None:
        return None
    if effect.low is None or effect.high is None:
        why = "One persona alone" if data.n_personas == 1 else "No interval over personas"
        return Remark("open", f"{why}: this says nothing of other personas.")
    if effect.low > 0:
        return Remark("good", "The effect's interval over personas excludes 0.")
    if effect.high < 0:
        return Remark("bad", "The effect is below 0: it moves against the intended direction.")
    return Remark("bad", "The effect's interval includes 0: this does not show that it steers.")


def _ratio_remark(data: Headline) -> Remark | None:
    if data.baseline is None or data.effect.value is None:
        return None
    other, ratio = data.baseline.label, data.ratio
    p = "" if data.p_holm is None else f" (Wilcoxon over personas, Holm: p = {data.p_holm:.2g})"
    if ratio.value is None:
        return Remark("open", f"There is no ratio to {other}, whose own effect is near or below 0.")
    if ratio.low is None or ratio.high is None:
        return Remark("open", f"The ratio to {other} has no interval, so it decides nothing.")
    if ratio.low > 1 and data.p_holm is not None and data.p_holm > 0.05:
        return Remark(
            "open", f"The ratio's interval excludes 1, but the paired test does not confirm it{p}."
        )
    if ratio.low > 1:
        return Remark("good", f"The ratio's interval excludes 1: further than {other}{p}.")
    if ratio.high < 1:
        return Remark("bad", f"The ratio's interval lies below 1: less far than {other}{p}.")
    return Remark(
        "open", f"The ratio's interval includes 1: not shown to move them further than {other}{p}."
    )


def null_remark(data: Headline) -> Remark:
    """Return the sentence on the random null."""
    null = data.null
    total = len(null.beyond) + len(null.within)
    if not total:
        return Remark("open", "No random null was measured, so chance is not ruled out.")
    draws = f"every one of {null.n_draws} random draws at the same KL"
    if not null.n_draws:
        draws = "the largest random draw at the same KL"
    p = "" if null.largest_p is None else f" (largest p = {null.largest_p:.2g})"
    if not null.within:
        who = "the one persona" if total == 1 else f"all {total} personas"
        return Remark("good", f"Beyond {draws} on {who}{p}.")
    verdict = "bad" if not null.beyond else "open"
    where = listing(list(null.within))
    return Remark(verdict, f"Beyond {draws} on {len(null.beyond)} of {total}{p}; not on {where}.")
