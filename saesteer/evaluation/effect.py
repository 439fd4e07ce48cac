"""Propensity and effect: how far vectors move held-out pairs, each at the strengths of one KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from saesteer.data.texts import ANSWERS_NAME, read_answers
from saesteer.evaluation.statistics import item_interval, pair_slopes, permutation_p
from saesteer.models.placement import by_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import encode_statements
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import DivergenceMeter, StrengthMatch, match_strength
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data.pairs import PairSet
    from saesteer.steering import Unit

Sides = Float[np.ndarray, "side pair"]


def statement_log_likelihoods(
    rows: TeacherForced,
    vector: SteeringVector | None = None,
    strength: float = 0.0,
    unit: Unit = "norm",
) -> Float[np.ndarray, " row"]:
    """Return each row's mean log-probability per kept token, in nats."""
    out = np.zeros(rows.n_rows)
    for part in rows.passes(vector, strength, unit):
        (said,) = by_rows(_log_probability, part.logits, part.after)
        counts = torch.bincount(part.row).tolist()
        for place, own in zip(part.index, said.split(counts), strict=True):
            out[place] = float(own.mean())
    return out


def _log_probability(logits: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor]:
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return (log_probs.gather(1, said[:, None])[:, 0],)


class PropensityMeter:
    """Margins of held-out pairs under steering.

    For a pair i and a strength a, with l the mean token log-probability of a statement as the
    assistant's words after a neutral request, m_i(a) = l(positive; a) - l(negative; a), in nats
    per token.

    Args:
        model: A model from `load_model`.
        pairs: Held-out pairs.
        request: The neutral request before statements that have no prompt of their own.
        chat: Whether to use the chat template; where there is one if None.
        system: A system prompt for the template.
        site: Where vectors will be added; others work but share less.

    Example:
        >>> meter = ss.PropensityMeter(model, test, request="Who are you?")
        >>> meter.margins(vector, strength=0.2).shape == (len(test),)
        True
    """

    def __init__(
        self,
        model: TransformerBridge,
        pairs: PairSet,
        *,
        request: str,
        chat: bool | None = None,
        system: str | None = None,
        site: Site | None = None,
    ) -> None:
        assert model.tokenizer is not None
        self.n_pairs = len(pairs)
        prompts = [pair.prompt or request for pair in pairs]
        rows = encode_statements(
            model.tokenizer,
            [*pairs.positives, *pairs.negatives],
            [*prompts, *prompts],
            chat=chat,
            system=system,
            max_length=int(model.cfg.n_ctx),
            what=pairs.side_names,
        )
        self._rows = TeacherForced(model, rows, site=site)

    def log_likelihoods(
        self, vector: SteeringVector | None = None, strength: float = 0.0, unit: Unit = "norm"
    ) -> Sides:
        """Return l for the positive (row 0) and negative (row 1) statements."""
        flat = statement_log_likelihoods(self._rows, vector, strength, unit)
        return flat.reshape(2, self.n_pairs)

    def margins(
        self, vector: SteeringVector | None = None, strength: float = 0.0, unit: Unit = "norm"
    ) -> Float[np.ndarray, " pair"]:
        """Return m_i at a strength, nats per token."""
        positive, negative = self.log_likelihoods(vector, strength, unit)
        return positive - negative


@dataclass(frozen=True)
class Effect:
    """How far a vector moves the held-out pairs."""

    effect: float  # E = mean over pairs of [m_i(a+) - m_i(-a-)] / 2, nats per token
    # The 95% interval of a bootstrap over pairs (`item_interval`); pairs are of one persona, so it
    # says nothing of other personas.
    low: float
    high: float
    moved_share: float  # of pairs, in the intended direction
    # Mean over both sides and signs of the change in log-likelihood against the unsteered model:
    # what moved matching and non-matching statements alike.
    common_shift: float
    up: list[float] = field(default_factory=list)  # m_i(a+); not in all stored results
    down: list[float] = field(default_factory=list)  # m_i(-a-)


def effect_of(unsteered: Sides, positive: Sides, negative: Sides) -> Effect:
    """Summarise the log-likelihoods at no, a positive and a negative strength, nats per token.

    Raises:
        DataError: There is no pair, or a margin is not a finite number.
    """
    up, down = positive[0] - positive[1], negative[0] - negative[1]
    moved = (up - down) / 2
    return Effect(
        *item_interval(moved),
        moved_share=float((moved > 0).mean()),
        common_shift=float(((positive + negative) / 2 - unsteered).mean()),
        up=up.tolist(),
        down=down.tolist(),
    )


@dataclass(frozen=True)
class VectorResult:
    """One vector at a divergence, both ways."""

    name: str
    method: str
    plus: StrengthMatch
    minus: StrengthMatch
    # None where a strength was not reached, or the model says numbers that are not finite.
    effect: Effect | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> VectorResult:
        """Return what `as_dict` gave away."""
        plus, minus = (StrengthMatch(**record[side]) for side in ("plus", "minus"))
        effect = None if record["effect"] is None else Effect(**record["effect"])
        return cls(record["name"], record["method"], plus, minus, effect)


class EffectMeter:
    """Measures vectors of one site at equal divergence on one set of held-out pairs.

    Args:
        divergence: Measures the cost.
        propensity: Measures the held-out pairs.
        unsteered: Their log-likelihoods without steering; measured if None.

    Example:
        >>> rows = ss.encode_statements(model.tokenizer, texts)
        >>> cost = ss.DivergenceMeter(model, rows)
        >>> meter = ss.EffectMeter(cost, ss.PropensityMeter(model, test, request="Who are you?"))
        >>> meter.measure(vector, kl_target=0.05).plus.reached
        True
    """

    def __init__(
        self,
        divergence: DivergenceMeter,
        propensity: PropensityMeter,
        unsteered: Sides | None = None,
    ) -> None:
        self._divergence = divergence
        self._propensity = propensity
        self.unsteered: Sides = propensity.log_likelihoods() if unsteered is None else unsteered

    def measure(
        self, vector: SteeringVector, kl_target: float, *, start: float = 0.25
    ) -> VectorResult:
        """Match both strengths to a divergence and measure the effect there.

        Args:
            vector: The vector.
            kl_target: KL(steered || base) that it is given in each direction, nats per token.
            start: The strength to try first, in units of the residual norm.
        """
        plus = match_strength(self._divergence, vector, kl_target, sign=1, start=start)
        minus = match_strength(self._divergence, vector, kl_target, sign=-1, start=plus.strength)
        effect = None
        if plus.reached and minus.reached:
            up, down = (
                self._propensity.log_likelihoods(vector, match.strength) for match in (plus, minus)
            )
            if np.isfinite([up, down]).all():
                effect = effect_of(self.unsteered, up, down)
        return VectorResult(vector.name, vector.method, plus, minus, effect)

    def curve(
        self, vector: SteeringVector, result: VectorResult, multiples: Sequence[float]
    ) -> dict[str, Any]:
        """Return the mean margin at multiples of the strengths that `measure` found.

        Negative multiples scale the negative strength. Over the `points` lie the pairs' mean
        `slope`, and the share `anti_steerable` of those that fall.
        """
        known = {0.0: self.unsteered[0] - self.unsteered[1]}
        if result.effect is not None and result.effect.up:
            known |= {1.0: np.array(result.effect.up), -1.0: np.array(result.effect.down)}
        points, ordered = [], sorted(multiples)
        for multiple in ordered:
            strength = abs(multiple) * (result.plus if multiple >= 0 else result.minus).strength
            if multiple not in known:
                known[multiple] = self._propensity.margins(vector, strength)
            margin = float(known[multiple].mean())
            points.append({"multiple": multiple, "strength": strength, "margin": margin})
        slopes = pair_slopes(ordered, np.array([known[multiple] for multiple in ordered]))
        anti_steerable = float((slopes < 0).mean())
        return {"points": points, "slope": float(slopes.mean()), "anti_steerable": anti_steerable}


@dataclass(frozen=True)
class NullComparison:
    """A vector against random directions at the same cost."""

    n: int  # random directions measured
    reached: int  # those among them that met the KL target
    largest: float  # |E| among them, nats per token
    beyond_all: bool  # whether the vector's E is larger than that
    # (1 + #{|E_random| >= E}) / (1 + reached): a one-sided test against either sign.
    p_value: float


def against_null(result: VectorResult, null: Sequence[VectorResult]) -> NullComparison | None:
    """Compare a vector's effect with random directions'; None where it has none to compare."""
    if result.effect is None or not null:
        return None
    effects = [abs(r.effect.effect) for r in null if r.effect is not None]
    largest = max(effects, default=0.0)
    return NullComparison(
        n=len(null),
        reached=len(effects),
        largest=largest,
        beyond_all=bool(effects and result.effect.effect > largest),
        p_value=permutation_p(result.effect.effect, effects),
    )


def is_monotone(curve: Sequence[dict[str, float]]) -> bool:
    """Return whether the mean margin rises with every step of strength."""
    margins = [row["margin"] for row in curve]
    return all(a < b for a, b in pairwise(margins))


def evaluate(
    model: TransformerBridge,
    pairs: PairSet,
    vectors: SteeringVector | Sequence[SteeringVector],
    *,
    kl_target: float = 0.3,
    request: str = "What would you say?",
    neutral: str = ANSWERS_NAME,
    neutral_answers: int = 6,
    chat: bool | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure how far vectors move held-out pairs, each at the strengths of one KL divergence.

    As in `saesteer steer` and `saesteer compare`, to the same numbers: for each vector and sign
    the strength is found that costs `kl_target` on neutral answers, and E is half the difference
    of the pairs' mean margins between the two.

    Args:
        model: A model from `load_model`.
        pairs: Held-out pairs.
        vectors: One vector or several, of any sites.
        kl_target: KL(steered || base) that each is given either way, nats per token.
        request: The neutral request before statements that have no prompt of their own; not the
            one that was read with.
        neutral: Neutral answers that KL is measured on: the bundled ones or a file with question
            and answer.
        neutral_answers: How many of them.
        chat: Whether prompts go through the chat template; where there is one if None.
        progress: Where to show progress.

    Returns:
        One row for each vector: method, strength (the positive one, in units of the residual norm)
        with the kl measured there, effect (E, nats per token) with the ends low and high of its
        95% bootstrap interval over the pairs. Where a KL target is not reached the effect is NaN.

    Raises:
        DataError: There are no pairs, or a text does not fit the model's context.

    Example:
        >>> table = ss.evaluate(model, test, [vector], kl_target=0.05)
        >>> list(table.columns)
        ['method', 'strength', 'kl', 'effect', 'low', 'high']
    """
    import pandas as pd

    @cache
    def meter(site: Site) -> EffectMeter:
        return EffectMeter(
            DivergenceMeter(model, rows, site=site),
            PropensityMeter(model, pairs, request=request, chat=chat, site=site),
        )

    answers = read_answers(neutral)[:neutral_answers]
    assert model.tokenizer is not None
    rows = encode_statements(
        model.tokenizer,
        [answer.answer for answer in answers],
        [answer.question for answer in answers],
        chat=chat,
        max_length=int(model.cfg.n_ctx),
        what=f"a neutral answer of {neutral}",
    )
    given = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    table = []
    with (progress or Progress()).task("vectors", total=len(given), unit="vectors") as task:
        for vector in given:
            found = meter(vector.site).measure(vector, kl_target)
            effect = found.effect
            ends = (
                (None, None, None) if effect is None else (effect.effect, effect.low, effect.high)
            )
            table.append((vector.method, found.plus.strength, found.plus.kl, *ends))
            task.advance(1, vector.name)
    columns = ["method", "strength", "kl", "effect", "low", "high"]
    return pd.DataFrame(table, columns=columns).astype(dict.fromkeys(columns[1:], float))
