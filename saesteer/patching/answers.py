"""What a model answers: the top tokens of every prompt, and whether it solves the task at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.forward import last_logits, slices
from saesteer.models.loading import plain_model
from saesteer.patching.batch import PairBatch, Side, token_text
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PromptAnswers:
    """What the model says after each of several prompts.

    Attributes:
        right_rank: The rank of the prompt's own right answer, 0 is the most probable token.
        right_probability: Its probability.
        logit_difference: The logit of the prompt's own right answer less that of the other one.
        top: The most probable tokens of every prompt with their probabilities, best first.
    """

    right_rank: Int[np.ndarray, " prompt"]
    right_probability: Float[np.ndarray, " prompt"]
    logit_difference: Float[np.ndarray, " prompt"]
    top: tuple[tuple[tuple[str, float], ...], ...]

    @property
    def accuracy(self) -> float:
        """Share of prompts whose right answer is more probable than the other one."""
        return float((self.logit_difference > 0).mean())

    @property
    def top1(self) -> float:
        """Share of prompts whose right answer is the most probable token of all."""
        return float((self.right_rank == 0).mean())


@dataclass(frozen=True)
class TaskAnswers:
    """Both prompts of every pair; each side is scored by its own right answer."""

    batch: PairBatch
    clean: PromptAnswers
    corrupted: PromptAnswers

    @property
    def accuracy(self) -> float:
        """Share of all prompts, clean and corrupted, answered right rather than wrong."""
        return (self.clean.accuracy + self.corrupted.accuracy) / 2

    @property
    def solved(self) -> Bool[np.ndarray, " pair"]:
        """The pairs of which both prompts are answered right."""
        return (self.clean.logit_difference > 0) & (self.corrupted.logit_difference > 0)

    def summary(self) -> dict[str, float]:
        """Return the numbers for a report.

        The corrupted logit difference is, as everywhere in patching, that of the clean prompt's
        answers on the corrupted prompt: below zero where the model follows the corruption.
        """
        return {
            "accuracy": self.accuracy,
            "accuracy_clean": self.clean.accuracy,
            "accuracy_corrupted": self.corrupted.accuracy,
            "top1_clean": self.clean.top1,
            "top1_corrupted": self.corrupted.top1,
            "logit_difference_clean": float(self.clean.logit_difference.mean()),
            "logit_difference_corrupted": -float(self.corrupted.logit_difference.mean()),
        }

    def frame(self) -> pd.DataFrame:
        """Return one row per prompt: pair, side, prompt, answers, figures and top tokens."""
        import pandas as pd

        rows = []
        for i, (pair, texts) in enumerate(zip(self.batch.pairs, self.batch.answers, strict=True)):
            for side, found, (right, other) in (
                ("clean", self.clean, texts),
                ("corrupted", self.corrupted, texts[::-1]),
            ):
                row: dict[str, Any] = {
                    "pair": self.batch.names[i],
                    "side": side,
                    "prompt": getattr(pair, side),
                    "answer": right,
                    "other": other,
                    "logit_difference": float(found.logit_difference[i]),
                    "rank": int(found.right_rank[i]),
                    "probability": float(found.right_probability[i]),
                }
                for place, (token, probability) in enumerate(found.top[i], start=1):
                    row |= {f"top{place}": token, f"top{place}_probability": probability}
                rows.append(row)
        return pd.DataFrame(rows)


def task_answers(
    model: Any, batch: PairBatch, *, top_k: int = 5, max_tokens: int = 4096
) -> TaskAnswers:
    """Ask the model every prompt of a batch."""
    root = plain_model(model)
    sides = []
    asked: tuple[tuple[Side, Tensor, Tensor], ...] = (
        ("clean", batch.right, batch.wrong),
        ("corrupted", batch.wrong, batch.right),
    )
    for side, right, wrong in asked:
        ids, mask = batch.side(side)
        found = []
        for rows in slices(ids, max_tokens):
            with torch.no_grad():
                logits = last_logits(root, ids[rows], mask[rows])
            found.append(
                prompt_answers(model.tokenizer, logits, right[rows], wrong[rows], top_k=top_k)
            )
        sides.append(
            PromptAnswers(
                np.concatenate([part.right_rank for part in found]),
                np.concatenate([part.right_probability for part in found]),
                np.concatenate([part.logit_difference for part in found]),
                tuple(row for part in found for row in part.top),
            )
        )
    return TaskAnswers(batch, *sides)


def prompt_answers(
    tokenizer: Any,
    logits: Float[Tensor, "prompt vocab"],
    right: Int[Tensor, " prompt"],
    wrong: Int[Tensor, " prompt"],
    *,
    top_k: int = 5,
) -> PromptAnswers:
    """Read ranks, probabilities and top tokens off logits."""
    if not 1 <= top_k <= logits.shape[1]:
        raise ConfigError(
            f"top_k is {top_k}; give a number from 1 to the vocabulary's {logits.shape[1]}"
        )
    wide = logits.float()
    right_logit = wide.gather(1, right[:, None])
    wrong_logit = wide.gather(1, wrong[:, None])
    probabilities = wide.softmax(dim=-1)
    best = probabilities.topk(top_k, dim=-1)
    top = tuple(
        tuple((token_text(tokenizer, token), p) for token, p in zip(tokens, ps, strict=True))
        for tokens, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )
    return PromptAnswers(
        (wide > right_logit).sum(dim=-1).cpu().numpy(),
        probabilities.gather(1, right[:, None])[:, 0].cpu().numpy(),
        (right_logit - wrong_logit)[:, 0].cpu().numpy(),
        top,
    )
