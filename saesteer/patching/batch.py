"""Pairs of prompts as token tensors, with a map between the positions of the two."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from saesteer.patching.pairs import PromptPair


@dataclass(frozen=True)
class PairBatch:
    """Clean and corrupted prompts, both left-padded to one common width.

    The last column is the last token of every prompt, where the answer is read.

    Attributes:
        pairs: The pairs.
        clean: Token ids of the clean prompts.
        corrupted: Token ids of the corrupted prompts.
        clean_mask: True at real tokens of the clean prompts.
        corrupted_mask: True at real tokens of the corrupted prompts.
        to_clean: For every column of the corrupted prompt the column of the clean prompt that
            stands for it, -1 where none does (padding, or words that only one prompt has).
        right: The token id of each clean prompt's answer.
        wrong: The token id of each corrupted prompt's answer.
        clean_words: The tokens of the clean prompts as text, "" at padding.
        corrupted_words: The same of the corrupted prompts.
    """

    pairs: tuple[PromptPair, ...]
    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    clean_mask: Bool[Tensor, "pair pos"]
    corrupted_mask: Bool[Tensor, "pair pos"]
    to_clean: Int[Tensor, "pair pos"]
    right: Int[Tensor, " pair"]
    wrong: Int[Tensor, " pair"]
    clean_words: tuple[tuple[str, ...], ...]
    corrupted_words: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def width(self) -> int:
        """How many columns every prompt has, padding included."""
        return int(self.clean.shape[1])
