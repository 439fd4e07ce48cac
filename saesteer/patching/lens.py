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
from saesteer.patching.batch import PairBatch, Side, token_text
from saesteer.patching.pairs import PromptPair
from saesteer.patching.target import has_component, required_target
from saesteer.utils.errors import ConfigError
from saesteer.utils.text import said

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LensResult:
    """The logit lens on every prompt of one side.

    Attributes:
        side: Which prompts were read. The answers are the clean prompts' on either side.
        points: Where the stream was read, in order: (layer, component). resid_pre stands for the
            first layer alone, since every later one is resid_post of the layer before.
        columns: Which columns of the batch were read.
        tokens: Every prompt's tokens at those columns, "" at padding.
        pairs: The pairs' names.
        logit_difference: Logit of the right answer less that of the wrong one; NaN at padding.
        right_rank: Rank of the right answer, 0 is the most probable token; -1 at padding.
        right_probability: Probability of the right answer; NaN at padding.
        top: The most probable tokens, best first, by [pair][point][column].
    """

    side: Side
    points: tuple[tuple[int, str], ...]
    columns: tuple[int, ...]
    tokens: tuple[tuple[str, ...], ...]
    pairs: tuple[str, ...]
    logit_difference: Float[np.ndarray, "pair point column"]
    right_rank: Int[np.ndarray, "pair point column"]
    right_probability: Float[np.ndarray, "pair point column"]
    top: tuple[tuple[tuple[tuple[str, ...], ...], ...], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The points as text, such as "3 resid_mid"."""
        return tuple(f"{layer} {component}" for layer, component in self.points)

    def frame(self) -> pd.DataFrame:
        """Return one row per pair, point and position that holds a token."""
        import pandas as pd

        rows = []
        for i, j, k in np.ndindex(*self.logit_difference.shape):
            if self.right_rank[i, j, k] < 0:
                continue
            layer, component = self.points[j]
            rows.append(
                {
                    "pair": self.pairs[i],
                    "layer": layer,
                    "component": component,
                    "position": self.columns[k],
                    "token": self.tokens[i][k],
                    "logit_difference": float(self.logit_difference[i, j, k]),
                    "rank": int(self.right_rank[i, j, k]),
                    "probability": float(self.right_probability[i, j, k]),
                    "top": " | ".join(self.top[i][j][k]),
                }
            )
        return pd.DataFrame(rows)


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
        model: A bridge from `load_model`.
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
    vocab = int(unembedding.head.weight.shape[0])
    if not 1 <= top_k <= vocab:
        raise ConfigError(f"top_k is {top_k}; give a number from 1 to the vocabulary's {vocab}")
    points = lens_points(model)
    targets = {point: required_target(model, point[1], point[0]) for point in points}
    columns = tuple(range(batch.width)) if every_position else (batch.width - 1,)
    shape = (len(batch), len(points), len(columns))
    difference, probability = np.full(shape, np.nan), np.full(shape, np.nan)
    rank = np.full(shape, -1, dtype=np.int64)
    top: dict[tuple[int, int, int], tuple[str, ...]] = {}
    texts: dict[int, str] = {}

    def kept_columns(hidden: Tensor) -> Tensor:
        return (hidden if every_position else hidden[:, -1:]).clone()

    ids, mask = batch.side(side)
    for rows in slices(ids, max_tokens):
        with torch.no_grad(), keeping(targets, keep=kept_columns) as streams:
            last_logits(plain_model(model), ids[rows], mask[rows])
        pair, column = mask[rows][:, columns[0] :].nonzero(as_tuple=True)
        right, wrong = batch.right[rows][pair, None], batch.wrong[rows][pair, None]
        places = [(int(i) + rows.start, int(k)) for i, k in zip(pair, column, strict=True)]
        for j, point in enumerate(points):
            with torch.no_grad():
                logits = unembedding.logits(streams[point][pair, column])
            own = logits.gather(1, right)
            at = (pair.cpu().numpy() + rows.start, j, column.cpu().numpy())
            difference[at] = (own - logits.gather(1, wrong))[:, 0].cpu().numpy()
            rank[at] = (logits > own).sum(dim=-1).cpu().numpy()
            probability[at] = (own[:, 0] - logits.logsumexp(dim=-1)).exp().cpu().numpy()
            best = logits.topk(top_k).indices.tolist()
            for (i, k), tokens in zip(places, best, strict=True):
                for token in tokens:
                    texts.setdefault(token, token_text(model.tokenizer, token))
                top[i, j, k] = tuple(texts[token] for token in tokens)
    return LensResult(
        side=side,
        points=points,
        columns=columns,
        tokens=tuple(tuple(row[column] for column in columns) for row in batch.words(side)),
        pairs=batch.names,
        logit_difference=difference,
        right_rank=rank,
        right_probability=probability,
        top=tuple(
            tuple(tuple(top.get((i, j, k), ()) for k in range(shape[2])) for j in range(shape[1]))
            for i in range(shape[0])
        ),
    )


def lens_points(model: Any) -> tuple[tuple[int, str], ...]:
    """Return where the lens reads: the first block's input, then every block's middle and output.

    A block whose attention and MLP run side by side has no middle.
    """
    inside = ("resid_mid", "resid_post") if has_component(model, "resid_mid") else ("resid_post",)
    layers = range(model.cfg.n_layers)
    return ((0, "resid_pre"), *((layer, name) for layer in layers for name in inside))


@dataclass(frozen=True)
class PromptReading:
    """One prompt, read at every layer and sub-layer.

    Attributes:
        prompt: The prompt.
        tokens: Its tokens, BOS included.
        answer: The token that the model finds most likely behind it.
        other: The runner-up.
        points: Where it was read, such as "3 resid_post".
        top: The most likely tokens by [point][token], best first.
        rank: The answer's rank behind the last token at each point; 0 is the most likely.
        probability: The answer's probability there.
        margin: Its logit less the runner-up's there.
    """

    prompt: str
    tokens: tuple[str, ...]
    answer: str
    other: str
    points: tuple[str, ...]
    top: tuple[tuple[tuple[str, ...], ...], ...]
    rank: tuple[int, ...]
    probability: tuple[float, ...]
    margin: tuple[float, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The most likely next token at every point (down) behind every token (across)."""
        import pandas as pd

        words = pd.Index(self.tokens, name="token")
        rows = pd.Index(self.points, name="point")
        best = [[top[0] if top else "" for top in tokens] for tokens in self.top]
        return pd.DataFrame(best, index=rows, columns=words)

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
        model: A bridge from `load_model`.
        prompts: The prompts.
        top_k: How many of the most likely tokens to keep.
        prepend_bos: Whether they start with BOS.

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
    rows = encode_texts(
        model.tokenizer,
        prompts,
        prepend_bos=prepend_bos,
        max_length=int(model.cfg.n_ctx),
        what="prompt",
    )
    return [_read(model, prompt, row.ids, top_k) for prompt, row in zip(prompts, rows, strict=True)]


def _read(model: Any, prompt: str, tokens: Sequence[int], top_k: int) -> PromptReading:
    device = input_device(plain_model(model))
    ids = torch.tensor([list(tokens)], device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    best = last_logits_in_parts(plain_model(model), ids, mask)[0].topk(2).indices.tolist()
    answer, other = (token_text(model.tokenizer, token) for token in best)
    words = tuple(token_text(model.tokenizer, token) for token in tokens)
    batch = PairBatch(
        pairs=(PromptPair(prompt, prompt, answer, other, "prompt"),),
        clean=ids,
        corrupted=ids,
        clean_mask=mask,
        corrupted_mask=mask,
        to_clean=torch.arange(len(words), device=device)[None],
        right=torch.tensor(best[:1], device=device),
        wrong=torch.tensor(best[1:], device=device),
        clean_words=(words,),
        corrupted_words=(words,),
        answers=((answer, other),),
    )
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
                f"{' class=own' if top and top[0] == reading.answer else ''}>"
                f"{shown(top[0] if top else '')}</td>"
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
