"""How far vectors of one site move held-out pairs, each at the strengths of one divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.propensity import PropensityMeter
from saesteer.evaluation.statistics import (
    anti_steerable_share,
    item_interval,
    pair_slopes,
    permutation_p,
)
from saesteer.steering.divergence import DivergenceMeter, StrengthMatch, match_strength

if TYPE_CHECKING:
    from saesteer.steering import SteeringVector

Sides = Float[np.ndarray, "side pair"]


@dataclass(frozen=True)
class Effect:
    """How far a vector moves the held-out pairs.

    Attributes:
        effect: E = mean over pairs of [m_i(a+) - m_i(-a-)] / 2, nats per token.
        low: Lower end of the 95% interval of a bootstrap over pairs (`item_interval`); pairs are
            of one persona, so the interval says nothing of other personas.
        high: Upper end.
        moved_share: Share of pairs moved in the intended direction.
        common_shift: Mean over both sides and signs of the change in log-likelihood against the
            unsteered model: what moved matching and non-matching statements alike.
        up: m_i(a+), one a pair; empty in results that were stored without them.
        down: m_i(-a-).
    """

    effect: float
    low: float
    high: float
    moved_share: float
    common_shift: float
    up: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)

    @property
    def moved(self) -> Float[np.ndarray, " pair"]:
        """What each pair adds to E."""
        return (np.array(self.up) - np.array(self.down)) / 2


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
    """One vector at a divergence, both ways.

    Attributes:
        name: The vector's name.
        method: How it was made.
        plus: The positive strength that meets the divergence.
        minus: The negative one.
        effect: What the two do to the held-out pairs; None where one was not reached, or the
            model says numbers that are not finite.
    """

    name: str
    method: str
    plus: StrengthMatch
    minus: StrengthMatch
    effect: Effect | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> VectorResult:
        """Return what `as_dict` gave away."""
        effect = record["effect"]
        return cls(
            record["name"],
            record["method"],
            StrengthMatch(**record["plus"]),
            StrengthMatch(**record["minus"]),
            None if effect is None else Effect(**effect),
        )


class EffectMeter:
    """Measures vectors of one site at equal divergence on one set of held-out pairs.

    Args:
        divergence: Measures the cost.
        propensity: Measures the held-out pairs.
        unsteered: Their log-likelihoods without steering; measured if None.
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
        """Return the mean margin at multiples of the matched strengths, each sign its own.

        Args:
            vector: The vector.
            result: What `measure` found of it.
            multiples: Such as -1.5 to 1.5; negative ones scale the negative strength.

        Returns:
            `points`, and over them the pairs' mean `slope` with the share `anti_steerable` of
            those that fall.
        """
        known = {0.0: self.unsteered[0] - self.unsteered[1]}
        if result.effect is not None and result.effect.up:
            known |= {1.0: np.array(result.effect.up), -1.0: np.array(result.effect.down)}
        points, margins = [], []
        for multiple in sorted(multiples):
            match = result.plus if multiple >= 0 else result.minus
            strength = abs(multiple) * match.strength
            margin = known.get(multiple)
            if margin is None:
                margin = self._propensity.margins(vector, strength)
            margins.append(margin)
            points.append(
                {"multiple": multiple, "strength": strength, "margin": float(margin.mean())}
            )
        slopes = pair_slopes(sorted(multiples), np.array(margins))
        return {
            "points": points,
            "slope": float(slopes.mean()),
            "anti_steerable": anti_steerable_share(slopes),
        }


@dataclass(frozen=True)
class NullComparison:
    """A vector against random directions at the same cost.

    Attributes:
        n: Random directions measured.
        reached: Those among them that met the KL target.
        largest: The largest |E| among them, nats per token.
        beyond_all: Whether the vector's E is larger than that.
        p_value: (1 + #{|E_random| >= E}) / (1 + reached), the permutation p of a one-sided test
            against either sign.
    """

    n: int
    reached: int
    largest: float
    beyond_all: bool
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
