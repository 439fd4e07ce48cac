"""What steering costs: the divergence from the unsteered model on neutral text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saesteer.models.tokens import TokenRow
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models.sites import Site
    from saesteer.steering import SteeringVector, Unit

FEWEST_TOKENS = 200


class DivergenceMeter:
    """KL(steered || base) per token on neutral answers.

    The base model's states below the unembedding are computed once and kept; its log-probabilities,
    which take as many numbers as the vocabulary has tokens, are made of them batch by batch.

    Args:
        model: A model from `load_model`.
        rows: Neutral prompts with answers; divergence is measured on the answers' tokens.
        site: As in `TeacherForced`.

    Raises:
        DataError: There are fewer than 200 tokens, too few to measure on.
    """

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[TokenRow],
        *,
        site: Site | None = None,
    ) -> None:
        # Nothing stands before a row's first token to predict it from.
        self.n_tokens = sum(sum(row.kept[1:]) for row in rows)
        if self.n_tokens < FEWEST_TOKENS:
            raise DataError(
                f"the neutral text has {self.n_tokens} tokens and KL needs at least "
                f"{FEWEST_TOKENS}; give more neutral answers."
            )
        self._model = model
        self._rows = TeacherForced(model, rows, site=site, max_tokens=1024)
        self._base = self._rows.last_states()

    def __call__(
        self, vector: SteeringVector | None, strength: float, unit: Unit = "norm"
    ) -> float:
        """Return KL(steered || base) in nats per token at a strength."""
        return self._kl(self._rows, vector, strength, unit)

    def of_prompted(self, rows: Sequence[TokenRow]) -> float:
        """Return KL(prompted || base) in nats per token.

        Args:
            rows: The same answers in the same order behind other prompts.
        """
        return self._kl(TeacherForced(self._model, rows, max_tokens=1024))

    def _kl(self, rows: TeacherForced, *steering: Any) -> float:
        total = 0.0
        for part in rows.passes(*steering, beside=self._base):
            assert part.beside is not None
            base = torch.log_softmax(part.beside.float(), dim=-1)
            steered = torch.log_softmax(part.logits.float(), dim=-1)
            total += float((steered.exp() * (steered - base)).sum())
        return total / self.n_tokens


@dataclass(frozen=True)
class StrengthMatch:
    """The strength at which a vector meets a KL target in one direction.

    Attributes:
        strength: The strength, signed, in `unit`.
        kl: The divergence measured there.
        kl_target: The divergence asked for.
        reached: Whether `kl` is within the tolerance of the KL target.
        evaluations: How many passes it took.
    """

    strength: float
    kl: float
    kl_target: float
    reached: bool
    evaluations: int


def match_strength(
    meter: DivergenceMeter,
    vector: SteeringVector,
    kl_target: float,
    *,
    sign: int = 1,
    unit: Unit = "norm",
    start: float = 0.2,
    largest: float = 8.0,
    tolerance: float = 0.03,
    max_evaluations: int = 16,
) -> StrengthMatch:
    """Find the strength at which a vector costs a given divergence.

    KL grows about as a power of the strength, so the next guess is the secant in log-log, kept
    inside the bracket known so far and replaced by its middle when it does not move.

    Args:
        meter: What measures the divergence.
        vector: The vector.
        kl_target: Nats per token.
        sign: 1 or -1: which way to steer.
        unit: The strength's unit.
        start: The first guess.
        largest: The strongest to try; past it the KL target counts as not reached.
        tolerance: How close the divergence must come, as a share of the KL target.
        max_evaluations: The most passes.

    Returns:
        The match; `reached` is False where the KL target cannot be met, which is a result.
    """
    low, high = 0.0, math.inf
    best: tuple[float, float] | None = None
    points: list[tuple[float, float]] = []
    guess = min(start, largest)
    count = 0
    while count < max_evaluations:
        count += 1
        kl = meter(vector, sign * guess, unit)
        if best is None or _distance(kl, kl_target) < _distance(best[1], kl_target):
            best = (guess, kl)
        if _distance(kl, kl_target) <= math.log1p(tolerance):
            break
        if kl < kl_target:
            if guess >= largest:
                break
            low = max(low, guess)
        else:
            high = min(high, guess)
        points.append((guess, kl))
        guess = min(_next_guess(points, low, high, kl_target), largest)
    assert best is not None
    reached = _distance(best[1], kl_target) <= math.log1p(tolerance)
    return StrengthMatch(sign * best[0], best[1], kl_target, reached, count)


def _distance(kl: float, kl_target: float) -> float:
    if not kl > 0 or not math.isfinite(kl):
        return math.inf
    return abs(math.log(kl / kl_target))


def _next_guess(
    points: list[tuple[float, float]], low: float, high: float, kl_target: float
) -> float:
    usable = [(s, k) for s, k in points if k > 0 and math.isfinite(k)]
    if not usable:
        guess = low * 4 if high == math.inf else (low + high) / 2
    else:
        power = 2.0
        if len(usable) > 1:
            (s1, k1), (s2, k2) = sorted(usable, key=lambda p: _distance(p[1], kl_target))[:2]
            if s1 != s2 and k1 != k2:
                power = min(max(math.log(k1 / k2) / math.log(s1 / s2), 0.5), 4.0)
        strength, kl = min(usable, key=lambda p: _distance(p[1], kl_target))
        guess = strength * (kl_target / kl) ** (1 / power)
    if high == math.inf:
        return min(guess, low * 4) if low else guess
    if not low < guess < high:
        guess = (low + high) / 2
    return guess
