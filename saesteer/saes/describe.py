"""The feature table made from text: what each feature fires on and promotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.reading import read_rows
from saesteer.models.tokens import TokenRow
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.lens import TokenTexts, extreme_tokens
from saesteer.utils.errors import DataError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

ROWS_AT_ONCE = 256
N_TOP = 8
N_BOTTOM = 5


def build_feature_table(
    model: TransformerBridge,
    sae: Sae,
    rows: Sequence[TokenRow],
    *,
    n_contexts: int = 5,
    context_tokens: int = 12,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Describe every feature of an SAE from one pass over text and from the logit lens.

    Args:
        model: The model.
        sae: The SAE.
        rows: Tokenised text; only kept tokens count and are shown.
        n_contexts: The most contexts of a feature, each from another row.
        context_tokens: Tokens in a context, the firing one among them.
        progress: Where to show progress.

    Returns:
        One row for each feature: its number, `density` (share of tokens on which it fires),
        `max_activation` and `mean_activation` (where it fires; by size), the tokens that it
        promotes and demotes, contexts (dictionaries of text, token and activation, each from
        another row of text), and a `description` made from these by rule, not by a reader.

    Raises:
        MismatchError: The SAE's width is not the model's.
        SiteError: The model has no such site.
        DataError: There is no text, or a row keeps no token.
    """
    import pandas as pd

    check_compatible(model, sae)
    if not rows:
        raise DataError("the feature table needs text; give at least one row.")
    stats = _Stats.empty(sae.d_sae, n_contexts)
    task = (progress or Progress()).task("describing features", total=len(rows), unit="rows")
    with task:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            block = rows[start : start + ROWS_AT_ONCE]
            stats = _extended(stats, model, sae, block, start)
            task.advance(len(block))
    texts = TokenTexts(model.tokenizer)
    top, bottom = extreme_tokens(model, sae, texts, n_top=N_TOP, n_bottom=N_BOTTOM)
    contexts = [
        _contexts(stats, feature, rows, texts, context_tokens) for feature in range(sae.d_sae)
    ]
    return pd.DataFrame(
        {
            "feature": np.arange(sae.d_sae),
            "density": (stats.fired / max(1, stats.tokens)).numpy(),
            "max_activation": stats.maximum.numpy(),
            "mean_activation": (stats.total / stats.fired.clamp_min(1)).numpy(),
            "top_tokens": top,
            "bottom_tokens": bottom,
            "contexts": contexts,
            "description": [_description(c, t) for c, t in zip(contexts, top, strict=True)],
        }
    )


@dataclass(frozen=True)
class _Stats:
    """What has been seen so far; the strongest rows of each feature, strongest first."""

    tokens: int
    fired: Int[Tensor, " feature"]
    total: Float[Tensor, " feature"]
    maximum: Float[Tensor, " feature"]
    strongest: Float[Tensor, "n_contexts feature"]
    signed: Float[Tensor, "n_contexts feature"]
    row: Int[Tensor, "n_contexts feature"]
    token: Int[Tensor, "n_contexts feature"]

    @classmethod
    def empty(cls, d_sae: int, n_contexts: int) -> _Stats:
        nothing = torch.zeros((n_contexts, d_sae))
        nowhere = torch.full((n_contexts, d_sae), -1)
        zeros = torch.zeros(d_sae, dtype=torch.float64)
        return cls(0, zeros, zeros, torch.zeros(d_sae), nothing, nothing, nowhere, nowhere)


def _extended(
    stats: _Stats, model: TransformerBridge, sae: Sae, block: Sequence[TokenRow], start: int
) -> _Stats:
    read = read_rows(model, block, [sae.site])[sae.site]
    fired, total = stats.fired.clone(), stats.total.clone()
    peaks: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in range(read.n_texts):
        codes = sae.encode(read.text(index)).cpu()
        size = codes.abs()
        fired += (codes != 0).sum(dim=0)
        total += size.sum(dim=0, dtype=torch.float64)
        peak, token = size.max(dim=0)
        peaks.append((peak, codes.gather(0, token[None])[0], token))
    peak, signed, token = (torch.stack(part) for part in zip(*peaks, strict=True))
    row = torch.arange(start, start + len(block))[:, None].expand_as(token)
    strongest = torch.cat([stats.strongest, peak])
    # Stable, so that of equal contexts the earlier row wins in every run.
    order = strongest.argsort(dim=0, descending=True, stable=True)[: len(stats.strongest)]
    return _Stats(
        stats.tokens + len(read.values),
        fired,
        total,
        torch.maximum(stats.maximum, peak.amax(dim=0)),
        strongest.gather(0, order),
        torch.cat([stats.signed, signed]).gather(0, order),
        torch.cat([stats.row, row]).gather(0, order),
        torch.cat([stats.token, token]).gather(0, order),
    )


def _contexts(
    stats: _Stats, feature: int, rows: Sequence[TokenRow], texts: TokenTexts, width: int
) -> list[dict[str, Any]]:
    found = []
    for rank in range(len(stats.strongest)):
        if stats.strongest[rank, feature] <= 0:
            break
        row = rows[int(stats.row[rank, feature])]
        place = int(np.flatnonzero(row.kept)[int(stats.token[rank, feature])])
        first, last = _window(row, place, width)
        found.append(
            {
                "text": texts.span(row.ids[first:last]),
                "token": texts.one(row.ids[place]),
                "activation": float(stats.signed[rank, feature]),
            }
        )
    return found


def _window(row: TokenRow, place: int, width: int) -> tuple[int, int]:
    """Return where a context starts and ends: kept tokens only, more before than after."""
    lowest, highest = place, place + 1
    while lowest > 0 and row.kept[lowest - 1]:
        lowest -= 1
    while highest < len(row) and row.kept[highest]:
        highest += 1
    first = max(lowest, place - (width - 1) * 2 // 3)
    last = min(highest, first + max(1, width))
    return max(lowest, min(first, last - max(1, width))), last


def _description(contexts: Sequence[dict[str, Any]], top: Sequence[str]) -> str:
    tokens = dict.fromkeys(context["token"].strip() or context["token"] for context in contexts)
    fires = f"fires on {_quoted(tokens, 3)}" if tokens else "never fired on the table's text"
    return f"{fires}; promotes {_quoted(top, 3)}" if top else fires


def _quoted(tokens: Sequence[str] | dict[str, None], most: int) -> str:
    shown = []
    for token in list(tokens)[:most]:
        plain = token.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
        shown.append(f'"{plain}"')
    return ", ".join(shown)
