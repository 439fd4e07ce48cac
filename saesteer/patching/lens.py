"""The logit lens: what the model would answer if it ended at a layer or sub-layer.

After nostalgebraist 2020, "interpreting GPT: the logit lens": the final norm and the unembedding
are applied to the residual stream in between, with everything that the model does to its logits.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.forward import last_logits, last_logits_in_parts, slices
from saesteer.models.hooks import keeping
from saesteer.models.loading import plain_model
from saesteer.models.tokens import encode_texts, input_device
from saesteer.models.unembed import Unembedding
from saesteer.patching.answers import read_answers
from saesteer.patching.batch import PairBatch, Side, token_text
from saesteer.patching.pairs import PromptPair
from saesteer.patching.target import has_component, required_target
from saesteer.utils.text import said

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LensResult:
    """The logit lens on every prompt of one side; the answers are the clean prompts' on either."""

    batch: PairBatch
    side: Side
    # Where the stream was read, in order: (layer, component). resid_pre stands for the first layer
    # alone, since every later one is resid_post of the layer before.
    points: tuple[tuple[int, str], ...]
    # Which columns of the batch were read.
    columns: tuple[int, ...]
    # Of the right answer, less that of the wrong one; NaN at padding.
    logit_difference: Float[np.ndarray, "pair point column"]
    # 0 is the most probable token; -1 at padding.
    right_rank: Int[np.ndarray, "pair point column"]
    right_probability: Float[np.ndarray, "pair point column"]
    # The most probable tokens as text, [pair, point, column, k], best first; "" at padding.
    top: np.ndarray

    @property
    def labels(self) -> tuple[str, ...]:
        """The points as text, such as "3 resid_mid"."""
        return tuple(f"{layer} {component}" for layer, component in self.points)

    def frame(self) -> pd.DataFrame:
        """Return one row per pair, point and position that holds a token."""
        import pandas as pd

        at = np.nonzero(self.right_rank >= 0)
        words, columns = self.batch.words(self.side), self.columns
        return pd.DataFrame(
            {
                "pair": [self.batch.names[i] for i in at[0]],
                "layer": [self.points[j][0] for j in at[1]],
                "component": [self.points[j][1] for j in at[1]],
                "position": [columns[k] for k in at[2]],
                "token": [words[i][columns[k]] for i, k in zip(at[0], at[2], strict=True)],
                "logit_difference": self.logit_difference[at],
                "rank": self.right_rank[at],
                "probability": self.right_probability[at],
                "top": [" | ".join(tokens) for tokens in self.top[at]],
            }
        )


def logit_lens(
    model: Any,
    batch: PairBatch,
    *,
    side: Side = "clean",
    every_position: bool = False,
    top_k: int = 3,
    max_tokens: int = 4096,
) -> LensResult:
    """Read every layer and sub-layer of a model as logits.

    Args:
        model: A model from `load_model`.
        batch: The pairs.
        side: Which prompts to read.
        every_position: Read every token's position, not the answer's alone.
        top_k: How many of the most probable tokens to keep.
        max_tokens: The most tokens in one pass, padding included.

    Raises:
        ConfigError: `top_k` is below 1 or above the vocabulary's size.
        SiteError: The residual stream cannot be read in the model's blocks.
    """
    unembedding = Unembedding(model)
    # A block whose attention and MLP run side by side has no middle.
    inside = ("resid_mid", "resid_post") if has_component(model, "resid_mid") else ("resid_post",)
    layers = range(model.cfg.n_layers)
    points = ((0, "resid_pre"), *((layer, name) for layer in layers for name in inside))
    targets = {point: required_target(model, point[1], point[0]) for point in points}
    columns = tuple(range(batch.width)) if every_position else (batch.width - 1,)
    shape = (len(batch), len(points), len(columns))
    difference, probability = np.full(shape, np.nan), np.full(shape, np.nan)
    rank, top = np.full(shape, -1), np.full((*shape, top_k), -1)

    def kept_columns(hidden: Tensor) -> Tensor:
        return (hidden if every_position else hidden[:, -1:]).clone()

    ids, mask = batch.side(side)
    for rows in slices(ids, max_tokens):
        with torch.no_grad(), keeping(targets, keep=kept_columns) as streams:
            last_logits(plain_model(model), ids[rows], mask[rows])
        pair, column = mask[rows][:, columns[0] :].nonzero(as_tuple=True)
        right, wrong = batch.right[rows][pair], batch.wrong[rows][pair]
        for j, point in enumerate(points):
            with torch.no_grad():
                logits = unembedding.logits(streams[point][pair, column])
            at = (pair.cpu().numpy() + rows.start, j, column.cpu().numpy())
            difference[at], rank[at], probability[at], top[at], _ = read_answers(
                logits, right, wrong, top_k
            )
    texts = {int(i): token_text(model.tokenizer, int(i)) for i in np.unique(top) if i >= 0}
    words = np.array([texts.get(i, "") for i in top.ravel().tolist()], dtype=object)
    return LensResult(
        batch, side, points, columns, difference, rank, probability, words.reshape(top.shape)
    )


@dataclass(frozen=True)
class PromptReading:
    """One prompt, read at every layer and sub-layer; a table in notebooks."""

    prompt: str
    # Its tokens, BOS included.
    tokens: tuple[str, ...]
    # The token that the model finds most likely behind it, and the runner-up.
    answer: str
    other: str
    # Where it was read, such as "3 resid_post".
    points: tuple[str, ...]
    # The most likely tokens, [point, token, k], best first.
    top: np.ndarray
    # The answer behind the last token at each point: its rank (0 is the most likely), its
    # probability, and its logit less the runner-up's.
    rank: tuple[int, ...]
    probability: tuple[float, ...]
    margin: tuple[float, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The most likely next token at every point (down) behind every token (across)."""
        import pandas as pd

        words = pd.Index(self.tokens, name="token")
        return pd.DataFrame(
            self.top[..., 0], index=pd.Index(self.points, name="point"), columns=words
        )

    def _repr_html_(self) -> str:
        return self.table.iloc[::-1].to_html()

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it: the reading behind the last token, point by point."""
        return {
            "prompt": self.prompt,
            "tokens": list(self.tokens),
            "answer": self.answer,
            "runner_up": self.other,
            "points": [
                {
                    "point": point,
                    "top": list(self.top[i][-1]),
                    "rank": self.rank[i],
                    "probability": self.probability[i],
                    "margin": self.margin[i],
                }
                for i, point in enumerate(self.points)
            ],
        }


@overload
def lens(
    model: Any, prompts: str, *, top_k: int = ..., prepend_bos: bool = ...
) -> PromptReading: ...
@overload
def lens(
    model: Any, prompts: Sequence[str], *, top_k: int = ..., prepend_bos: bool = ...
) -> list[PromptReading]: ...
def lens(
    model: Any, prompts: str | Sequence[str], *, top_k: int = 3, prepend_bos: bool = True
) -> PromptReading | list[PromptReading]:
    """Read what the model would answer if it ended at a layer or sub-layer, at every token.

    Args:
        model: A model from `load_model`.
        prompts: One prompt or several.
        top_k: How many of the most likely tokens to keep.
        prepend_bos: Whether prompts start with BOS.

    Raises:
        DataError: A prompt is longer than the model's context.
        ConfigError: `top_k` is above the vocabulary's size.

    Example:
        >>> reading = ss.lens(model, "I like the")
        >>> len(reading.tokens) > 3
        True
    """
    if isinstance(prompts, str):
        return lens(model, [prompts], top_k=top_k, prepend_bos=prepend_bos)[0]
    context = int(model.cfg.n_ctx)
    rows = encode_texts(
        model.tokenizer, prompts, prepend_bos=prepend_bos, max_length=context, what="prompt"
    )
    return [_read(model, prompt, row.ids, top_k) for prompt, row in zip(prompts, rows, strict=True)]


def _read(model: Any, prompt: str, tokens: Sequence[int], top_k: int) -> PromptReading:
    device = input_device(plain_model(model))
    ids = torch.tensor([list(tokens)], device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    best = last_logits_in_parts(plain_model(model), ids, mask)[0].topk(2).indices
    answer, other = (token_text(model.tokenizer, int(token)) for token in best)
    words = tuple(token_text(model.tokenizer, token) for token in tokens)
    pair = PromptPair(prompt, prompt, answer, other)
    same = torch.arange(len(words), device=device)[None]
    batch = PairBatch((pair,), ids, ids, mask, mask, same, best[:1], best[1:], (words,), (words,))
    found = logit_lens(model, batch, every_position=True, top_k=top_k)
    return PromptReading(
        prompt=prompt,
        tokens=words,
        answer=answer,
        other=other,
        points=found.labels,
        top=found.top[0],
        rank=tuple(found.right_rank[0, :, -1].tolist()),
        probability=tuple(found.right_probability[0, :, -1].tolist()),
        margin=tuple(found.logit_difference[0, :, -1].tolist()),
    )


def lens_page(readings: Sequence[PromptReading], model: str) -> str:
    """Return a page with the most likely next token at every layer and token, offline."""

    def shown(text: object) -> str:
        return html.escape(said(text))

    parts = []
    for reading in readings:
        head = "".join(f"<th>{shown(token)}</th>" for token in reading.tokens)
        lines = []
        for i in reversed(range(len(reading.points))):
            cells = "".join(
                f'<td title="{shown(" | ".join(top))}"'
                f"{' class=own' if top[0] == reading.answer else ''}>{shown(top[0])}</td>"
                for top in reading.top[i]
            )
            lines.append(f"<tr><th>{shown(reading.points[i])}</th>{cells}</tr>")
        parts.append(
            f"<h2>{shown(reading.prompt)}</h2><p>The model goes on with <b>"
            f"{shown(reading.answer)}</b>.</p><div><table><tr><th></th>{head}</tr>"
            f"{''.join(lines)}</table></div>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv='
        "\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Logit lens: {shown(model)}</title><style>body{{font:14px/1.4 system-ui,sans-serif;"
        "margin:2rem;color:#1f2630}div{overflow-x:auto}table{border-collapse:collapse;font-size:"
        "12px}td,th{border:1px solid #e3e6eb;padding:2px 6px;white-space:pre;text-align:left}th{"
        "color:#5c6675;font-weight:500}td.own{background:#d5ecdc}</style></head><body>"
        f"<h1>Logit lens: {shown(model)}</h1><p>Each row reads as if the model ended there; hover "
        "for the runners-up. Green is the model's final answer.</p>"
        f"{''.join(parts)}</body></html>\n"
    )
