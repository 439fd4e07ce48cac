"""Vectors held against each other at equal cost on the same held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.propensity import Effect, PropensityMeter, effect_of
from saesteer.steering.divergence import DivergenceMeter, StrengthMatch, match_strength

if TYPE_CHECKING:
    from saesteer.steering import SteeringVector


@dataclass(frozen=True)
class VectorResult:
    """One vector at the budget, both ways.

    Attributes:
        name: The vector's name.
        method: How it was made.
        plus: The positive strength that meets the budget.
        minus: The negative one.
        effect: What the two do to the held-out pairs; None where a budget was not reached.
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


class EqualCostComparison:
    """Measures vectors of one site at one divergence budget on one set of held-out pairs.

    Args:
        divergence: Measures the cost.
        propensity: Measures the held-out pairs.
        budget: KL(steered || base) that every vector is given in each direction, nats per token.
        seed: Seeds the bootstrap.
    """

    def __init__(
        self,
        divergence: DivergenceMeter,
        propensity: PropensityMeter,
        *,
        budget: float,
        seed: int = 0,
    ) -> None:
        self._divergence = divergence
        self._propensity = propensity
        self._budget = budget
        self._seed = seed
        self.unsteered: Float[np.ndarray, "side pair"] = propensity.log_likelihoods()

    def measure(self, vector: SteeringVector, *, start: float = 0.25) -> VectorResult:
        """Match both strengths to the budget and measure the effect there.

        Args:
            vector: The vector.
            start: The strength to try first, in units of the residual norm.
        """
        plus = match_strength(self._divergence, vector, self._budget, sign=1, start=start)
        minus = match_strength(
            self._divergence, vector, self._budget, sign=-1, start=abs(plus.strength)
        )
        effect = None
        if plus.reached and minus.reached:
            effect = effect_of(
                self.unsteered,
                self._propensity.log_likelihoods(vector, plus.strength),
                self._propensity.log_likelihoods(vector, minus.strength),
                seed=self._seed,
            )
        return VectorResult(vector.name, vector.method, plus, minus, effect)

    def curve(
        self, vector: SteeringVector, result: VectorResult, multiples: Sequence[float]
    ) -> list[dict[str, float]]:
        """Return the mean margin at multiples of the matched strengths, each sign its own.

        Args:
            vector: The vector.
            result: Its matched strengths.
            multiples: Such as -1.5 to 1.5; negative ones scale the negative strength.
        """
        rows = []
        for multiple in sorted(multiples):
            match = result.plus if multiple >= 0 else result.minus
            strength = abs(multiple) * match.strength
            sides = self._propensity.log_likelihoods(vector, strength)
            rows.append(
                {
                    "multiple": multiple,
                    "strength": strength,
                    "margin": float((sides[0] - sides[1]).mean()),
                    "positive": float(sides[0].mean()),
                    "negative": float(sides[1].mean()),
                }
            )
        return rows


@dataclass(frozen=True)
class NullComparison:
    """A vector against random directions at the same cost.

    Attributes:
        n: Random directions measured.
        reached: Those among them that met the budget.
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
    effects = np.array([abs(r.effect.effect) for r in null if r.effect is not None])
    largest = float(effects.max()) if len(effects) else 0.0
    at_least = int((effects >= result.effect.effect).sum())
    return NullComparison(
        n=len(null),
        reached=len(effects),
        largest=largest,
        beyond_all=bool(len(effects) and result.effect.effect > largest),
        p_value=(1 + at_least) / (1 + len(effects)),
    )


def is_monotone(curve: Sequence[dict[str, float]]) -> bool:
    """Return whether the mean margin rises with every step of strength."""
    margins = [row["margin"] for row in curve]
    return all(a < b for a, b in pairwise(margins))
