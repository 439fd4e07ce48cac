"""What steering costs: the divergence from the unsteered model on neutral text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from saesteer.data.texts import ANSWERS_NAME, read_answers
from saesteer.models.loading import context_length
from saesteer.models.placement import by_rows
from saesteer.models.tokens import TokenRow, encode_statements
from saesteer.steering.strength import check_unit, to_raw
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.errors import DataError, SteeringError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models.sites import Site
    from saesteer.steering import SteeringVector, Unit

FEWEST_TOKENS = 200
# As many of the bundled neutral answers as runs measure the divergence on.
NEUTRAL_ANSWERS = 6


class DivergenceMeter:
    """KL(steered || base) per token on neutral answers.

    The base model's states below the unembedding are computed once and kept; its log-probabilities,
    which take as many numbers as the vocabulary has tokens, are made of them batch by batch.

    Args:
        rows: Neutral prompts with answers; divergence is measured on the answers' tokens.
        site: Where passes will be steered, or several sites; elsewhere they take longer.

    Raises:
        DataError: There are fewer than 200 tokens, too few to measure on.

    Example:
        >>> cost = ss.DivergenceMeter(model, ss.encode_statements(model.tokenizer, texts))
        >>> cost(vector, strength=0.5) > cost(vector, strength=0.0)
        True
    """

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[TokenRow],
        *,
        site: Site | Sequence[Site] | None = None,
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
        return divergence(self._rows, self._base, vector, strength, unit)

    def of_prompted(self, rows: Sequence[TokenRow]) -> float:
        """Return KL(prompted || base) for the same answers, in order, behind other prompts."""
        return divergence(TeacherForced(self._model, rows, max_tokens=1024), self._base)


def divergence(
    rows: TeacherForced, base: Sequence[torch.Tensor], *steering: Any, **editing: Any
) -> float:
    """Return KL(changed || base) in nats per scored token.

    `base` are the base model's `last_states`; the rest is what `TeacherForced.passes` takes.
    """
    total = 0.0
    for part in rows.passes(*steering, **editing, beside=base):
        assert part.beside is not None
        (of_tokens,) = by_rows(_of_tokens, part.logits, part.beside)
        total += float(of_tokens.sum())
    return total / rows.n_scored


def _of_tokens(changed: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor]:
    log_p, log_q = (torch.log_softmax(logits.float(), dim=-1) for logits in (changed, base))
    return ((log_p.exp() * (log_p - log_q)).sum(dim=-1),)


@dataclass(frozen=True)
class StrengthMatch:
    """The strength at which a vector meets a KL target in one direction."""

    # Signed, in the unit that was asked for.
    strength: float
    # The divergence measured there, and the one asked for.
    kl: float
    kl_target: float
    # Whether `kl` is within the tolerance of it; that it is not is a result.
    reached: bool
    # How many passes it took.
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
) -> StrengthMatch:
    """Find the strength at which a vector costs a given divergence.

    Args:
        meter: What measures the divergence.
        vector: What to steer with.
        kl_target: Nats per token.
        sign: 1 or -1: which way to steer.
        start: The first guess.
        largest: The strongest to try; past it the target counts as not reached.
        tolerance: How close the divergence must come, as a share of the target.

    Example:
        >>> cost = ss.DivergenceMeter(model, ss.encode_statements(model.tokenizer, texts))
        >>> ss.match_strength(cost, vector, kl_target=0.05).reached
        True
    """
    return match_kl(
        lambda strength: meter(vector, strength, unit),
        kl_target,
        sign=sign,
        start=start,
        largest=largest,
        tolerance=tolerance,
    )


def neutral_rows(
    model: TransformerBridge, source: str = ANSWERS_NAME, n_answers: int = NEUTRAL_ANSWERS
) -> list[TokenRow]:
    """Return neutral answers as tokens: the bundled ones that runs measure the divergence on."""
    answers = read_answers(source)[:n_answers]
    assert model.tokenizer is not None
    return encode_statements(
        model.tokenizer,
        [answer.answer for answer in answers],
        [answer.question for answer in answers],
        max_length=context_length(model),
        what=f"a neutral answer of {source}",
    )


def strength_at_kl(
    kl_at: Callable[[float], float],
    vector: SteeringVector,
    kl_target: float,
    unit: Unit = "norm",
) -> StrengthMatch:
    """Find the strength that costs a divergence, or refuse.

    Args:
        kl_at: What the divergence is at a strength of that unit, nats per token.
        vector: What is steered with; its measures tell where to begin and where to end.
        kl_target: Nats per token; a negative one is the cost of steering the other way, and 0 is
            no steering.
        unit: Of the strength.

    Raises:
        SteeringError: The target is no finite number, no strength costs as much, or the vector does
            not carry the unit's measure.
    """
    if not math.isfinite(kl_target):
        raise SteeringError(f"KL {kl_target} is not finite; give a number such as 0.3 or -0.3.")
    # `match_kl` begins at 0.2 and ends at 8 residual norms, in whatever unit.
    norm = (vector.residual_norm or vector.norm) / to_raw(1.0, check_unit(unit), vector)
    if not kl_target:
        return StrengthMatch(0.0, 0.0, 0.0, True, 0)
    sign = 1 if kl_target > 0 else -1
    match = match_kl(lambda times: kl_at(times * norm), abs(kl_target), sign=sign)
    match = replace(match, strength=match.strength * norm)
    if not match.reached:
        raise SteeringError(
            f"no strength costs KL {match.kl_target:g}: the nearest is {match.kl:.3g} at "
            f"{match.strength:.3g} ({unit}); ask for another KL, or give a strength."
        )
    return match


def match_kl(
    kl_at: Callable[[float], float],
    kl_target: float,
    *,
    sign: int = 1,
    start: float = 0.2,
    largest: float = 8.0,
    tolerance: float = 0.03,
    max_evaluations: int = 16,
) -> StrengthMatch:
    """Find the strength at which any way of steering costs a given divergence.

    KL grows about as a power of the strength, so the next guess is the secant in log-log, kept
    inside the bracket known so far and replaced by its middle when it does not move. The arguments
    are those of `match_strength`.
    """
    low, high = 0.0, math.inf
    points: list[tuple[float, float]] = []
    guess = min(start, largest)
    while len(points) < max_evaluations:
        kl = kl_at(sign * guess)
        points.append((guess, kl))
        if _distance(kl, kl_target) <= math.log1p(tolerance):
            break
        if kl < kl_target:
            if guess >= largest:
                break
            low = max(low, guess)
        else:
            high = min(high, guess)
        guess = min(_next_guess(points, low, high, kl_target), largest)
    strength, kl = min(points, key=lambda point: _distance(point[1], kl_target))
    reached = _distance(kl, kl_target) <= math.log1p(tolerance)
    return StrengthMatch(sign * strength, kl, kl_target, reached, len(points))


def _distance(kl: float, kl_target: float) -> float:
    if not kl > 0 or not math.isfinite(kl):
        return math.inf
    return abs(math.log(kl / kl_target))


def _next_guess(points: list[tuple[float, float]], low: float, high: float, target: float) -> float:
    usable = [(s, k) for s, k in points if k > 0 and math.isfinite(k)]
    if not usable:
        guess = low * 4 if high == math.inf else (low + high) / 2
    else:
        nearest = sorted(usable, key=lambda p: _distance(p[1], target))
        power = 2.0
        if len(nearest) > 1:
            (s1, k1), (s2, k2) = nearest[:2]
            if s1 != s2 and k1 != k2:
                power = min(max(math.log(k1 / k2) / math.log(s1 / s2), 0.5), 4.0)
        strength, kl = nearest[0]
        guess = strength * (target / kl) ** (1 / power)
    if high == math.inf:
        return min(guess, low * 4) if low else guess
    if not low < guess < high:
        guess = (low + high) / 2
    return guess
