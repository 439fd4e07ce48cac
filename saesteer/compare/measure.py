"""One vector or system prompt at every budget, on one persona's held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation import DivergenceMeter, PropensityMeter, StrengthMatch, match_strength
from saesteer.evaluation.statistics import anti_steerable_share, item_interval, pair_slopes

if TYPE_CHECKING:
    from saesteer.steering import SteeringVector

Sides = Float[np.ndarray, "side pair"]


class PersonaMeter:
    """Measures effects at matched cost on one set of pairs.

    Args:
        divergence: The cost.
        propensity: The pairs.
        unsteered: Their log-likelihoods without steering; measured if None.
    """

    def __init__(
        self,
        divergence: DivergenceMeter,
        propensity: PropensityMeter,
        unsteered: Sides | None = None,
    ) -> None:
        self.divergence = divergence
        self.propensity = propensity
        self.unsteered = propensity.log_likelihoods() if unsteered is None else unsteered

    def at_budget(
        self, vector: SteeringVector, budget: float, start: float = 0.25
    ) -> dict[str, Any]:
        """Match both strengths to a budget and measure the effect there.

        Returns:
            The record of a budget: `plus`, `minus`, and `effect` with `moved`, one value a pair,
            both None where a budget was not reached, which is a result.
        """
        plus = match_strength(self.divergence, vector, budget, sign=1, start=start)
        minus = match_strength(self.divergence, vector, budget, sign=-1, start=plus.strength)
        record: dict[str, Any] = {
            "budget": budget,
            "plus": _match(plus),
            "minus": _match(minus),
            "effect": None,
            "moved": None,
        }
        if plus.reached and minus.reached:
            up = self.propensity.log_likelihoods(vector, plus.strength)
            down = self.propensity.log_likelihoods(vector, minus.strength)
            record |= self.effect(up, down)
        return record

    def effect(self, up: Sides, down: Sides) -> dict[str, Any]:
        """Return the effect of two ways of steering, E = mean of [m_i(+) - m_i(-)] / 2."""
        moved = ((up[0] - up[1]) - (down[0] - down[1])) / 2
        interval = item_interval(moved)
        return {
            "effect": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "moved_share": float((moved > 0).mean()),
            "common_shift": float(((up + down) / 2 - self.unsteered).mean()),
            "moved": moved.tolist(),
            "up": (up[0] - up[1]).tolist(),
            "down": (down[0] - down[1]).tolist(),
        }

    def curve(
        self, vector: SteeringVector, record: dict[str, Any], multiples: Sequence[float]
    ) -> dict[str, Any]:
        """Return margins at multiples of the matched strengths, and each pair's slope over them.

        Args:
            vector: The vector.
            record: What `at_budget` found.
            multiples: Such as -1.5 to 1.5; negative ones scale the negative strength.
        """
        known = {1.0: record["up"], -1.0: record["down"]}
        known[0.0] = (self.unsteered[0] - self.unsteered[1]).tolist()
        points, margins = [], []
        for multiple in sorted(multiples):
            side = record["plus" if multiple >= 0 else "minus"]
            strength = abs(multiple) * side["strength"]
            margin = known.get(multiple)
            if margin is None:
                both = self.propensity.log_likelihoods(vector, strength)
                margin = (both[0] - both[1]).tolist()
            margins.append(margin)
            mean = float(np.mean(margin))
            points.append({"multiple": multiple, "strength": strength, "margin": mean})
        slopes = pair_slopes(sorted(multiples), np.array(margins))
        return {
            "points": points,
            "slope": float(slopes.mean()),
            "anti_steerable": anti_steerable_share(slopes),
        }


def _match(match: StrengthMatch) -> dict[str, Any]:
    record = asdict(match)
    return {key: record[key] for key in ("strength", "kl", "reached")}
