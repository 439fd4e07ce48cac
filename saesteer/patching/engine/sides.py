"""A batch of pairs seen from a patch: where it writes and where it reads; and the scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.patching.metrics import Metric, MetricRows
from saesteer.patching.prompts.batch import PairBatch, position_ids
from saesteer.patching.result import Mode


@dataclass(frozen=True)
class Sides:
    """The run that is patched and the run that activations come from.

    Attributes:
        ids: Token ids of the destination prompts.
        mask: True at their real tokens.
        source_ids: Token ids of the source prompts.
        source_mask: True at their real tokens.
        to_source: For every column of the destination the source's column, -1 for none.
        allowed: The destination's columns that have a counterpart.
        fresh: Those of them where the two runs can differ: both prompts begin alike up to there
            otherwise, so that a patch changes nothing.
    """

    ids: Int[Tensor, "pair pos"]
    mask: Bool[Tensor, "pair pos"]
    source_ids: Int[Tensor, "pair pos"]
    source_mask: Bool[Tensor, "pair pos"]
    to_source: Int[Tensor, "pair pos"]
    allowed: Bool[Tensor, "pair pos"]
    fresh: Bool[Tensor, "pair pos"]


def sides_of(batch: PairBatch, mode: Mode, pairs: slice, device: torch.device) -> Sides:
    """Return a batch's pairs as a patch sees them.

    Args:
        batch: The pairs.
        mode: "denoising" writes into the corrupted prompts, "noising" into the clean ones.
        pairs: Which pairs.
        device: Where the tensors go.
    """
    clean, corrupted, clean_mask, corrupted_mask, to_clean = (
        part[pairs].to(device)
        for part in (
            batch.clean,
            batch.corrupted,
            batch.clean_mask,
            batch.corrupted_mask,
            batch.to_clean,
        )
    )
    if mode == "denoising":
        sides = corrupted, corrupted_mask.bool(), clean, clean_mask.bool(), to_clean
    else:
        sides = clean, clean_mask.bool(), corrupted, corrupted_mask.bool(), _inverted(to_clean)
    ids, mask, source_ids, source_mask, to_source = sides
    allowed = (to_source >= 0) & mask
    fresh = allowed & ~_alike(ids, mask, source_ids, source_mask, to_source)
    return Sides(ids, mask, source_ids, source_mask, to_source, allowed, fresh)


@dataclass(frozen=True)
class Scorer:
    """Scores rows by a metric.

    Attributes:
        metric: The metric.
        answers: Every pair's right and wrong answer.
        clean: The clean run's logits, for metrics over the vocabulary.
    """

    metric: Metric
    answers: Int[Tensor, "pair 2"]
    clean: Float[Tensor, "pair vocab"] | None = None

    def wanted(self, pair: Int[Tensor, " row"]) -> Int[Tensor, "row 2"] | None:
        """Return the vocabulary's columns that the metric needs of every row; None for all."""
        return self.answers[pair] if self.metric.answers_only else None

    def score(
        self, logits: Float[Tensor, "row column"], pair: Int[Tensor, " row"]
    ) -> Float[np.ndarray, " row"]:
        """Return every row's number.

        Args:
            logits: The columns that `wanted` names.
            pair: Every row's pair.
        """
        if self.metric.answers_only:
            right = torch.zeros_like(pair)
            rows = MetricRows(right, right + 1)
        else:
            right, wrong = self.answers[pair].unbind(dim=1)
            rows = MetricRows(right, wrong, None if self.clean is None else self.clean[pair])
        return self.metric.score(logits, rows).double().cpu().numpy()


def _inverted(to_clean: Int[Tensor, "pair pos"]) -> Int[Tensor, "pair pos"]:
    # Where several columns stand for one, the last of them counts.
    inverse = torch.full_like(to_clean, -1)
    for pair, column in (to_clean >= 0).nonzero().tolist():
        inverse[pair, to_clean[pair, column]] = column
    return inverse


def _alike(
    ids: Tensor, mask: Tensor, source_ids: Tensor, source_mask: Tensor, to_source: Tensor
) -> Bool[Tensor, "pair pos"]:
    """Return the columns up to which a prompt and its source have the same tokens, one to one."""
    place, theirs = position_ids(mask), position_ids(source_mask)
    counterpart = to_source.clamp(min=0)
    same = (source_ids.gather(1, counterpart) == ids) & (theirs.gather(1, counterpart) == place)
    same = same & (to_source >= 0)
    # Pads stand before every real token and do not break the beginning.
    return ((same | ~mask).long().cumprod(dim=1) > 0) & mask
