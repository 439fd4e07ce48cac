"""What the probes read at every token of a text."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.data.labelled import LabelledSet, LabelledText
from saesteer.models.reading import read_rows
from saesteer.probes.probe import ProbeSet
from saesteer.probes.reading import ReadSettings, encode_labelled, plain_texts
from saesteer.utils.errors import DataError, MismatchError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Under this name the probe's own reading stands beside the independent measures.
OWN_READING = "probe (its own)"
# Orange and blue stay apart for colour-blind eyes.
LOW_COLOUR, HIGH_COLOUR = (234, 88, 12), (37, 99, 235)
_LINE = "\n"


@dataclass(frozen=True, eq=False)
class TokenReading:
    """Every layer's reading of one text, token by token."""

    text: str
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, "layer token class"]
    # The same for the whole text, pooled as the probes were trained.
    whole: Float[np.ndarray, "layer class"]

    def lean(self) -> Float[np.ndarray, "layer token"]:
        """Return P(last class) - P(first class) at each layer and token, from -1 to 1."""
        return self.probabilities[..., -1] - self.probabilities[..., 0]

    def whole_lean(
        self, towards: str | None = None, away: str | None = None
    ) -> Float[np.ndarray, " layer"]:
        """Return the same for the whole text at each layer, or of two other classes."""
        to = self.classes.index(towards) if towards else -1
        fro = self.classes.index(away) if away else 0
        return self.whole[:, to] - self.whole[:, fro]


def read_texts_with(
    model: TransformerBridge,
    probes: ProbeSet,
    texts: Sequence[str],
    layers: Sequence[int] | None = None,
) -> list[TokenReading]:
    """Read texts with the probes of some layers, all if None, in one pass."""
    if probes.sae is not None:
        raise MismatchError(
            f"these probes read codes of SAE {probes.sae}; give a run that was trained on the "
            "residual stream."
        )
    probes.check_belongs(model)
    chosen = list(probes.probes) if layers is None else [probes.layer(n) for n in layers]
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"text {number} is empty; give it at least one word.")
    tokenizer: Any = model.tokenizer
    # A span is what the labels of a set were about; a text on its own is read as a whole.
    settings = ReadSettings(positions="mean", before=probes.before, after=probes.after)
    longest = int(model.cfg.n_ctx)
    rows = encode_labelled(tokenizer, plain_texts(texts), settings, max_length=longest)
    # What is shown is the text alone.
    shown = [sum(row.kept) for row in rows]
    if probes.positions == "end":
        # Read to the very end, where these probes were trained.
        firsts = [row.kept.index(True) for row in rows]
        rows = [
            replace(row, kept=tuple(place >= first for place in range(len(row))))
            for row, first in zip(rows, firsts, strict=True)
        ]
    found = read_rows(model, rows, [probe.site for probe in chosen])
    readings = []
    for index, text in enumerate(texts):
        ids = [i for i, kept in zip(rows[index].ids, rows[index].kept, strict=True) if kept]
        by_token, by_text = [], []
        for probe in chosen:
            values = found[probe.site].text(index).float().numpy()
            pooled = values[-1] if probes.positions in ("last", "end") else values.mean(axis=0)
            by_token.append(probe.probabilities(values[: shown[index]]))
            by_text.append(probe.probabilities(pooled[None])[0])
        readings.append(
            TokenReading(
                text,
                tuple(tokenizer.decode([i]) for i in ids[: shown[index]]),
                tuple(probe.site.layer for probe in chosen),
                probes.classes,
                np.stack(by_token),
                np.stack(by_text),
            )
        )
    return readings


def probe_lean(
    model: TransformerBridge,
    probes: ProbeSet,
    texts: Sequence[str],
    towards: str,
    away: str,
    layer: int | None = None,
) -> Float[np.ndarray, " text"]:
    """Return P(towards) - P(away) of whole texts by one layer's probe; NaN for an empty text.

    This is the probe judging texts that its own direction may have changed: never a measure of
    what an intervention did, only something to hold beside one.
    """
    wanted = [probes.best if layer is None else layer]

    def lean(written: list[str]) -> list[float]:
        found = read_texts_with(model, probes, written, wanted)
        return [reading.whole_lean(towards, away)[0] for reading in found]

    return measured(texts, lean)


def measured(
    texts: Sequence[str], measure: Callable[[list[str]], Sequence[float] | np.ndarray]
) -> Float[np.ndarray, " text"]:
    """Return a measure of each text, NaN for an empty one."""
    values = np.full(len(texts), np.nan)
    rows = [row for row, text in enumerate(texts) if text.strip()]
    if rows:
        values[rows] = measure([texts[row] for row in rows])
    return values


def check_record(cases: Sequence[LabelledText], predicted: Sequence[str]) -> dict[str, Any]:
    """Return how many of a list of plain cases are read rightly, with those that are missed."""
    misses = [
        {"text": case.text, "label": case.label, "predicted": found}
        for case, found in zip(cases, predicted, strict=True)
        if case.label != found
    ]
    return {"n": len(cases), "right": len(cases) - len(misses), "misses": misses}


def run_checks(
    model: TransformerBridge, probes: ProbeSet, checks: LabelledSet, layer: int | None = None
) -> dict[str, Any]:
    """Read a list of plain cases with one layer's probe, the best one's if None.

    Cases of classes that the probes do not know are left out. Returned are the `layer`, and how
    many of `n` cases are `right`, with the `misses`.
    """
    cases = [text for text in checks.texts if text.label in probes.classes]
    if not cases:
        raise DataError(
            f"{checks.source}: no text has a label of the probes' classes "
            f"{', '.join(probes.classes)}; give another list."
        )
    wanted = probes.best if layer is None else layer
    readings = read_texts_with(model, probes, [text.text for text in cases], [wanted])
    predicted = [probes.classes[int(reading.whole[0].argmax())] for reading in readings]
    return {"layer": wanted, **check_record(cases, predicted)}


def colour(lean: float) -> tuple[int, int, int, float]:
    """Return red, green, blue and opacity for a reading from -1 to 1."""
    red, green, blue = HIGH_COLOUR if lean >= 0 else LOW_COLOUR
    return red, green, blue, round(min(abs(lean), 1.0) ** 0.8 * 0.75, 3)


def reading_page(readings: Sequence[TokenReading], title: str) -> str:
    """Return an HTML page of coloured tokens, one line per layer; it needs nothing else."""
    parts = [_HEAD.format(title=html.escape(title))]
    for reading in readings:
        ends = reading.classes[0], reading.classes[-1]
        low, high = (html.escape(name) for name in ends)
        parts.append(
            f"<h2>{html.escape(reading.text[:120])}</h2><p><span class=k style='background:"
            f"{_css(-1)}'>{low}</span> <span class=k style='background:{_css(1)}'>{high}</span></p>"
            "<table>"
        )
        leans, whole = reading.lean(), reading.whole_lean()
        for place, layer in enumerate(reading.layers):
            cells = "".join(
                f"<span style='background:{_css(lean)}' title='{_hover(reading, place, i)}'>"
                f"{html.escape(token).replace(_LINE, '⏎<br>')}</span>"
                for i, (token, lean) in enumerate(zip(reading.tokens, leans[place], strict=True))
            )
            parts.append(
                f"<tr><th>layer {layer}</th><td class=n style='background:{_css(whole[place])}'>"
                f"{whole[place]:+.2f}</td><td>{cells}</td></tr>"
            )
        parts.append("</table>")
    return "".join([*parts, "</body></html>\n"])


def _hover(reading: TokenReading, layer: int, token: int) -> str:
    values = reading.probabilities[layer, token]
    named = zip(reading.classes, values, strict=True)
    return html.escape(", ".join(f"{name} {value:.2f}" for name, value in named), quote=True)


def _css(lean: float) -> str:
    red, green, blue, opacity = colour(float(lean))
    return f"rgba({red},{green},{blue},{opacity})"


_HEAD = """<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title><style>
body{{font:15px/1.6 system-ui,sans-serif;margin:2rem;color:#111;background:#fff}}
h1{{font-size:1.2rem}} h2{{font-size:1rem;margin:1.6rem 0 .2rem}}
table{{border-collapse:collapse}} th{{font-weight:400;color:#555;padding-right:.8rem;
text-align:right;white-space:nowrap;vertical-align:top}} td{{vertical-align:top}}
td.n{{padding:0 .5rem;font-variant-numeric:tabular-nums}} td span{{white-space:pre-wrap}}
.k{{padding:.1rem .5rem}}</style></head><body><h1>{title}</h1>
<p>Each token's reading by each layer's probe; the number is the whole text's, the probability of
the right-hand class less that of the left-hand one. A probe trained on means reads single tokens
less surely than texts.</p>"""
