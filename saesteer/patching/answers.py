"""What a model answers: the top tokens of every prompt, and whether it solves the task at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.forward import last_logits, slices
from saesteer.models.loading import plain_model
from saesteer.patching.batch import PairBatch, token_text
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


class Answers(NamedTuple):
    """What rows of logits say of each row's two answers, and the most probable tokens."""

    logit_difference: Float[np.ndarray, " row"]  # The right answer's logit less the other's.
    right_rank: Int[np.ndarray, " row"]  # 0 is the most probable token.
    right_probability: Float[np.ndarray, " row"]
    top: Int[np.ndarray, "row k"]  # Token ids, best first.
    top_probability: Float[np.ndarray, "row k"]


def read_answers(
    logits: Float[Tensor, "row vocab"],
    right: Int[Tensor, " row"],
    wrong: Int[Tensor, " row"],
    top_k: int,
) -> Answers:
    """Read ranks, probabilities and top tokens off logits."""
    if not 1 <= top_k <= logits.shape[1]:
        raise ConfigError(
            f"top_k is {top_k}; give a number from 1 to the vocabulary's {logits.shape[1]}"
        )
    wide = logits.float()
    own, other = wide.gather(1, right[:, None]), wide.gather(1, wrong[:, None])
    probabilities = wide.softmax(dim=-1)
    best = probabilities.topk(top_k, dim=-1)
    found = (
        (own - other)[:, 0],
        (wide > own).sum(dim=-1),
        probabilities.gather(1, right[:, None])[:, 0],
        best.indices,
        best.values,
    )
    return Answers(*(part.cpu().numpy() for part in found))


@dataclass(frozen=True)
class TaskAnswers:
    """Both prompts of every pair; each side is scored by its own right answer."""

    batch: PairBatch
    clean: Answers
    corrupted: Answers
    tokenizer: Any

    @property
    def accuracy(self) -> float:
        """Share of all prompts, clean and corrupted, answered right rather than wrong."""
        sides = (self.clean, self.corrupted)
        return sum(float((side.logit_difference > 0).mean()) for side in sides) / 2

    @property
    def solved(self) -> Bool[np.ndarray, " pair"]:
        """The pairs of which both prompts are answered right."""
        return (self.clean.logit_difference > 0) & (self.corrupted.logit_difference > 0)

    def summary(self) -> dict[str, float]:
        """Return the numbers for a report.

        The corrupted logit difference is, as everywhere in patching, that of the clean prompt's
        answers on the corrupted prompt: below zero where the model follows the corruption.
        """
        record = {"accuracy": self.accuracy}
        for name, side, sign in (("clean", self.clean, 1), ("corrupted", self.corrupted, -1)):
            record[f"accuracy_{name}"] = float((side.logit_difference > 0).mean())
            record[f"top1_{name}"] = float((side.right_rank == 0).mean())
            record[f"logit_difference_{name}"] = sign * float(side.logit_difference.mean())
        return record

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
                top = zip(found.top[i].tolist(), found.top_probability[i].tolist(), strict=True)
                for place, (token, probability) in enumerate(top, start=1):
                    row[f"top{place}"] = token_text(self.tokenizer, token)
                    row[f"top{place}_probability"] = probability
                rows.append(row)
        return pd.DataFrame(rows)


def task_answers(
    model: Any, batch: PairBatch, *, top_k: int = 5, max_tokens: int = 4096
) -> TaskAnswers:
    """Ask the model every prompt of a batch."""
    sides = []
    for ids, mask, right, wrong in (
        (batch.clean, batch.clean_mask, batch.right, batch.wrong),
        (batch.corrupted, batch.corrupted_mask, batch.wrong, batch.right),
    ):
        parts = []
        for rows in slices(ids, max_tokens):
            with torch.no_grad():
                logits = last_logits(plain_model(model), ids[rows], mask[rows])
            parts.append(read_answers(logits, right[rows], wrong[rows], top_k))
        sides.append(Answers(*map(np.concatenate, zip(*parts, strict=True))))
    clean, corrupted = sides
    return TaskAnswers(batch, clean, corrupted, model.tokenizer)
