"""Paired timing: two things in one process, turn by turn, so that noise hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """How fast one thing is against another.

    Attributes:
        median: Median over rounds of reference seconds / candidate seconds; above 1 is faster.
        low: The smallest of them.
        high: The largest.
        candidate: Median seconds of the candidate.
        reference: Median seconds of the reference.
    """

    median: float
    low: float
    high: float
    candidate: float
    reference: float


def paired_ratio(
    candidate: Callable[[], object], reference: Callable[[], object], rounds: int = 7
) -> Ratio:
    """Time both in alternating order after one warm-up of each."""
    candidate()
    reference()
    pairs = []
    for number in range(rounds):
        order = (candidate, reference) if number % 2 else (reference, candidate)
        seconds = {function: _seconds(function) for function in order}
        pairs.append((seconds[candidate], seconds[reference]))
    ratios = [b / a for a, b in pairs]
    return Ratio(
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def _seconds(function: Callable[[], object]) -> float:
    _finish()
    start = time.perf_counter()
    function()
    _finish()
    return time.perf_counter() - start


def _finish() -> None:
    # A GPU is still at work when a call comes back.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
