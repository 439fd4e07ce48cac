"""The feature table made from text: what each feature fires on and promotes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saesteer.models.reading import Activations, read_rows
from saesteer.models.tokens import TokenRow
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.lens import TokenTexts, extreme_words
from saesteer.saes.naming import Place, name_feature
from saesteer.saes.words import RowWords, WordCounts, token_words
from saesteer.utils.errors import DataError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

ROWS_AT_ONCE = 256
N_TOP = 8
N_BOTTOM = 5
# Places that a label is made from, each of another row.
N_PLACES = 40


def build_feature_table(
    model: TransformerBridge,
    sae: Sae,
    rows: Sequence[TokenRow],
    *,
    n_contexts: int = 5,
    context_words: tuple[int, int] = (8, 4),
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Describe every feature of an SAE from one pass over text and from the logit lens.

    Only kept tokens count and are shown, as whole words. A context is the word of a firing token
    with `context_words` before and after it.

    Returns:
        One row for each feature: its number, `density` (share of tokens on which it fires),
        `max_activation` and `mean_activation` (where it fires; by size), the words that it
        promotes and demotes, at most `n_contexts` contexts (dictionaries of text, token, activation
        and where the token stands, each from another row), the `words` on which it fires most in
        proportion to chance, and a `description` made from these by rule, not by a reader.

    Raises:
        MismatchError: The SAE's width is not the model's.
        SiteError: The model has no such site.
        DataError: There is no text, or a row keeps no token.
    """
    import pandas as pd

    check_compatible(model, sae)
    if not rows:
        raise DataError("the feature table needs text; give at least one row.")
    seen = _Seen(sae, max(N_PLACES, n_contexts))
    task = (progress or Progress()).task("describing features", total=len(rows), unit="rows")
    with task:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            block = rows[start : start + ROWS_AT_ONCE]
            seen.add(read_rows(model, block, [sae.site])[sae.site], start)
            task.advance(len(block))
    texts = TokenTexts(model.tokenizer)
    row_words = [RowWords.of(row, texts) for row in rows]
    counts = WordCounts(row_words)
    names = token_words(zip(rows, row_words, strict=True), texts, counts)
    top, bottom = extreme_words(model, sae, names, n_top=N_TOP, n_bottom=N_BOTTOM)
    places = [seen.places(index) for index in range(sae.d_sae)]
    named = [name_feature(found, row_words, counts) for found in places]
    return pd.DataFrame(
        {
            "feature": np.arange(sae.d_sae),
            "density": (seen.fired / max(1, seen.tokens)).numpy(),
            "max_activation": seen.maximum.numpy(),
            "mean_activation": (seen.total / seen.fired.clamp_min(1)).numpy(),
            "top_tokens": top,
            "bottom_tokens": bottom,
            "contexts": [
                _contexts(found, row_words, n_contexts, *context_words) for found in places
            ],
            "words": [words for _, words in named],
            "description": [label for label, _ in named],
        }
    )


class _Seen:
    """What has been seen so far of each feature; its strongest rows, strongest first."""

    def __init__(self, sae: Sae, n_places: int) -> None:
        self.sae = sae
        self.tokens = 0
        self.fired = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.total = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.maximum = torch.zeros(sae.d_sae)
        nowhere = torch.full((n_places, sae.d_sae), -1)
        # Of the strongest rows the size of the largest activation, its value, its row and token.
        self.strongest = [torch.zeros((n_places, sae.d_sae)) for _ in range(2)] + [nowhere] * 2

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

    def places(self, feature: int) -> list[Place]:
        """Return the strongest places of a feature, each of another row."""
        columns = (values[:, feature].tolist() for values in self.strongest)
        found = zip(*columns, strict=True)
        return [Place(value, row, token) for size, value, row, token in found if size > 0]


def _contexts(
    places: Sequence[Place], rows: Sequence[RowWords], most: int, before: int, after: int
) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for activation, row, token in places:
        head, word, tail = rows[row].around(token, before, after)
        text = f"{head}{word}{tail}"
        if word and len(found) < most:
            known = {"text": text, "token": word, "activation": activation, "at": len(head)}
            # What stands in the text more than once is shown once.
            found.setdefault(text, known)
    return list(found.values())
