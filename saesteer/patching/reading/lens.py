"""The logit lens: what the model would answer if it ended at a layer or sub-layer.

After nostalgebraist 2020, "interpreting GPT: the logit lens": the final norm and the unembedding
are applied to the residual stream in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.patching.prompts.batch import PairBatch, token_text
from saesteer.patching.reading.residual_reads import (
    Reads,
    Side,
    Unembedding,
    check_unembedding,
    find_unembedding,
    has_component,
    read_components,
    side_tokens,
)
from saesteer.utils.errors import ConfigError

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
        SiteError: The model does more than a norm and an unembedding behind its last block.
    """
    unembedding = find_unembedding(model)
    vocab = unembedding.head.weight.shape[0]  # type: ignore[union-attr]
    if not 1 <= top_k <= vocab:  # type: ignore[operator]
        raise ConfigError(f"top_k is {top_k}; give a number from 1 to the vocabulary's {vocab}")
    points = lens_points(model)
    columns = tuple(range(batch.width)) if every_position else (batch.width - 1,)
    shape = (len(batch), len(points), len(columns))
    found = _Found(
        np.full(shape, np.nan), np.full(shape, -1, dtype=np.int64), np.full(shape, np.nan), {}
    )
    wanted = [(component, layer) for layer, component in points]
    for reads in read_components(
        model, batch, side, wanted, last_only=not every_position, max_tokens=max_tokens
    ):
        last = reads.parts[points[-1][1], points[-1][0]][:, -1]
        check_unembedding(model, unembedding, last, reads.logits)
        _read_rows(model.tokenizer, unembedding, batch, reads, points, side, top_k, found)
    words = batch.clean_words if side == "clean" else batch.corrupted_words
    return LensResult(
        side=side,
        points=points,
        columns=columns,
        tokens=tuple(tuple(row[column] for column in columns) for row in words),
        pairs=tuple(pair.name or f"pair {i}" for i, pair in enumerate(batch.pairs, start=1)),
        logit_difference=found.difference,
        right_rank=found.rank,
        right_probability=found.probability,
        top=tuple(
            tuple(
                tuple(found.top.get((i, j, k), ()) for k in range(shape[2]))
                for j in range(shape[1])
            )
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
class _Found:
    difference: np.ndarray
    rank: np.ndarray
    probability: np.ndarray
    top: dict[tuple[int, int, int], tuple[str, ...]]


def _read_rows(
    tokenizer: Any,
    unembedding: Unembedding,
    batch: PairBatch,
    reads: Reads,
    points: Sequence[tuple[int, str]],
    side: Side,
    top_k: int,
    found: _Found,
) -> None:
    start = reads.rows.start
    width = next(iter(reads.parts.values())).shape[1]
    real = side_tokens(batch, side)[1][reads.rows][:, -width:].cpu()
    pair, column = (axis.numpy() for axis in real.nonzero(as_tuple=True))
    right = batch.right[reads.rows].cpu()[pair]
    wrong = batch.wrong[reads.rows].cpu()[pair]
    texts: dict[int, str] = {}
    for j, (layer, component) in enumerate(points):
        stream = reads.parts[component, layer]
        rows: Tensor = stream[pair, column]
        with torch.no_grad():
            logits = unembedding.logits(rows).cpu()
        own = logits.gather(1, right[:, None])
        at = (pair + start, j, column)
        found.difference[at] = (own - logits.gather(1, wrong[:, None]))[:, 0].numpy()
        found.rank[at] = (logits > own).sum(dim=-1).numpy()
        found.probability[at] = (own[:, 0] - logits.logsumexp(dim=-1)).exp().numpy()
        for i, k, tokens in zip(pair, column, logits.topk(top_k).indices.tolist(), strict=True):
            for token in tokens:
                texts.setdefault(token, token_text(tokenizer, token))
            found.top[int(i) + start, j, int(k)] = tuple(texts[token] for token in tokens)
