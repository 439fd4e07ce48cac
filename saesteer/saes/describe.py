"""The feature table made from text: what each feature fires on and promotes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saesteer.models.reading import Activations, read_rows
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

    Only kept tokens count and are shown. A context has `context_tokens` tokens, the firing one
    among them.

    Returns:
        One row for each feature: its number, `density` (share of tokens on which it fires),
        `max_activation` and `mean_activation` (where it fires; by size), the tokens that it
        promotes and demotes, at most `n_contexts` contexts (dictionaries of text, token and
        activation, each from another row of text), and a `description` made from these by rule,
        not by a reader.

    Raises:
        MismatchError: The SAE's width is not the model's.
        SiteError: The model has no such site.
        DataError: There is no text, or a row keeps no token.
    """
    import pandas as pd

    check_compatible(model, sae)
    if not rows:
        raise DataError("the feature table needs text; give at least one row.")
    seen = _Seen(sae, n_contexts)
    task = (progress or Progress()).task("describing features", total=len(rows), unit="rows")
    with task:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            block = rows[start : start + ROWS_AT_ONCE]
            seen.add(read_rows(model, block, [sae.site])[sae.site], start)
            task.advance(len(block))
    texts = TokenTexts(model.tokenizer)
    top, bottom = extreme_tokens(model, sae, texts, n_top=N_TOP, n_bottom=N_BOTTOM)
    contexts = [seen.contexts(i, rows, texts, context_tokens) for i in range(sae.d_sae)]
    return pd.DataFrame(
        {
            "feature": np.arange(sae.d_sae),
            "density": (seen.fired / max(1, seen.tokens)).numpy(),
            "max_activation": seen.maximum.numpy(),
            "mean_activation": (seen.total / seen.fired.clamp_min(1)).numpy(),
            "top_tokens": top,
            "bottom_tokens": bottom,
            "contexts": contexts,
            "description": [_description(c, t) for c, t in zip(contexts, top, strict=True)],
        }
    )


class _Seen:
    """What has been seen so far of each feature; its strongest rows, strongest first."""

    def __init__(self, sae: Sae, n_contexts: int) -> None:
        self.sae = sae
        self.tokens = 0
        self.fired = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.total = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.maximum = torch.zeros(sae.d_sae)
        nowhere = torch.full((n_contexts, sae.d_sae), -1)
        # Of the strongest rows the size of the largest activation, its value, its row and token.
        self.strongest = [torch.zeros((n_contexts, sae.d_sae)) for _ in range(2)] + [nowhere] * 2

    def add(self, read: Activations, start: int) -> None:
        """Take in a block of rows, the first of which is row `start`."""
        found: list[tuple[Tensor, ...]] = []
        for index in range(read.n_texts):
            codes = self.sae.encode(read.text(index)).cpu()
            size = codes.abs()
            self.fired += (codes != 0).sum(dim=0)
            self.total += size.sum(dim=0, dtype=torch.float64)
            peak, token = size.max(dim=0)
            row = torch.full_like(token, start + index)
            found.append((peak, codes.gather(0, token[None])[0], row, token))
        self.tokens += len(read.values)
        both = [
            torch.cat([old, torch.stack(new)])
            for old, new in zip(self.strongest, zip(*found, strict=True), strict=True)
        ]
        self.maximum = torch.maximum(self.maximum, both[0].amax(dim=0))
        # Stable, so that of equal contexts the earlier row wins in every run.
        order = both[0].argsort(dim=0, descending=True, stable=True)[: len(self.strongest[0])]
        self.strongest = [values.gather(0, order) for values in both]

    def contexts(
        self, feature: int, rows: Sequence[TokenRow], texts: TokenTexts, width: int
    ) -> list[dict[str, Any]]:
        """Return the strongest places of a feature as texts of at most `width` tokens."""
        found = []
        columns = (values[:, feature].tolist() for values in self.strongest)
        for size, value, row_number, token in zip(*columns, strict=True):
            if size <= 0:
                break
            row = rows[row_number]
            place = int(np.flatnonzero(row.kept)[token])
            first, last = _window(row, place, width)
            found.append(
                {
                    "text": texts.span(row.ids[first:last]),
                    "token": texts.one(row.ids[place]),
                    "activation": value,
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


def _quoted(tokens: Iterable[str], most: int) -> str:
    marks = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})
    return ", ".join(f'"{token.translate(marks)}"' for token in list(tokens)[:most])
