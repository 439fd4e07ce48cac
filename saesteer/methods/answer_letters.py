"""The residual stream at the answer letters of A/B questions about pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from saesteer.evaluation.choices import LETTERS, QUESTION, answer_cue, choice_question
from saesteer.models.reading import PairActivations, read_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import encode_statements

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data.pairs import PairSet


def balanced_orders(n: int, seed: int) -> Bool[np.ndarray, " pair"]:
    """Return for each of n pairs whether the positive side is option (A): half of them are."""
    return np.random.default_rng(seed).permutation(np.arange(n) % 2 == 0)


def answer_pairs(
    model: TransformerBridge,
    pairs: PairSet,
    sites: Sequence[Site],
    *,
    question: str = QUESTION,
    chat: bool | None = None,
    prepend_bos: bool | None = None,
    seed: int = 0,
) -> dict[Site, PairActivations]:
    """Read the answer letters of one A/B question per pair, answered both ways.

    The question offers both statements (after the pair's own prompt, where it has one), the
    matching one as (A) in half of the pairs and as (B) in the others. The answer is written "(A",
    so that the letter is the last token, and only the letter is read; the matching letter is the
    positive side. `question` stands before the options of pairs that have no prompt of their own,
    and `seed` decides which pairs have the matching statement as (A).

    Raises:
        DataError: A question does not fit the model's context.
        SiteError: The model has no such site.
    """
    assert model.tokenizer is not None
    cue = answer_cue(model.tokenizer, chat)
    prompts, letters = [], ([], [])
    for pair, first in zip(pairs, balanced_orders(len(pairs), seed), strict=True):
        options = (pair.positive, pair.negative) if first else (pair.negative, pair.positive)
        prompts.append(choice_question(*options, pair.prompt or question) + cue)
        for said, letter in zip(letters, LETTERS if first else LETTERS[::-1], strict=True):
            said.append(letter)
    both = [*letters[0], *letters[1]]
    rows = encode_statements(
        model.tokenizer,
        [f"({letter}" for letter in both],
        prompts * 2,
        spans=both,
        chat=chat,
        prepend_bos=prepend_bos,
        max_length=int(model.cfg.n_ctx),
        what=pairs.question_names * 2,
        remedy="shorten its sides",
    )
    n = len(pairs)
    return {
        site: PairActivations(read.slice(0, n), read.slice(n, 2 * n), "last")
        for site, read in read_rows(model, rows, sites).items()
    }
