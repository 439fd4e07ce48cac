"""What steering should do, measured on training data, and how that answers to small changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.methods.attribution.fisher import FisherMetric
from saesteer.methods.attribution.gradients import row_gradients
from saesteer.steering.divergence import DivergenceMeter, match_strength
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from saesteer.steering import SteeringVector

# Of hundreds of pairs without anything in common a few hundredths remain.
NO_DIFFERENCE = 1e-3

Arrays = dict[str, np.ndarray]
Keep = Callable[[np.ndarray, Callable[[], Arrays]], Arrays]
MakeVector = Callable[[Float[np.ndarray, " d_model"]], "SteeringVector"]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Texts whose likelihood steering should raise, against as many it should lower.

    Attributes:
        name: What they are, such as "statements".
        rows: The texts to raise, then those to lower, in the same order.
        weight: How much they count; contrasts are brought to one scale first.
    """

    name: str
    rows: TeacherForced
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.rows.n_rows % 2:
            raise ConfigError(
                f"contrast {self.name!r} has {self.rows.n_rows} texts; give as many to lower as to "
                "raise."
            )
        if not 0 <= self.weight < np.inf:
            raise ConfigError(
                f"contrast {self.name!r}: weight {self.weight:g} is no weight; give 0 or more."
            )

    @property
    def n_pairs(self) -> int:
        """Number of texts to raise, and of texts to lower."""
        return self.rows.n_rows // 2


@dataclass(frozen=True, eq=False)
class Linearisation:
    """The objective to first order around a vector.

    Attributes:
        gain: Gradient of the objective with respect to a vector added both ways, [d_model].
        effects: E of each contrast at the matched strengths, nats per token.
        plus: The positive strength that meets the KL target; 0 around nothing.
        minus: The negative one.
    """

    gain: Float[np.ndarray, " d_model"]
    effects: dict[str, float]
    plus: float = 0.0
    minus: float = 0.0


class SteeringObjective:
    """The effect E on training contrasts at a KL target, and its first derivatives.

    With l(s; u) the mean token log-probability of a text under an added vector u and v at its
    matched strengths a+ and -a-,

        E(v) = mean over pairs of [m(a+ v) - m(-a- v)] / 2,   m(u) = l(s+; u) - l(s-; u)

    and `gain` is the mean of the gradients of m at a+ v and at -a- v: what a small vector added to
    v (and taken away on the negative side) changes.

    Args:
        contrasts: What to raise and to lower.
        divergence: The cost, on neutral text that no evaluation uses.
        metric: The cost to second order at zero.
        make_vector: Turns a raw vector into a SteeringVector at the site.
        kl_target: KL(steered || base) at which to linearise, nats per token.
        keep: Returns the arrays of a linearisation, computed by the function given or kept from
            earlier; computed each time if None.

    Raises:
        ConfigError: There are no contrasts, or the KL target is not above 0.
    """

    def __init__(
        self,
        contrasts: Sequence[Contrast],
        divergence: DivergenceMeter,
        metric: FisherMetric,
        make_vector: MakeVector,
        *,
        kl_target: float = 0.3,
        keep: Keep | None = None,
    ) -> None:
        if not contrasts:
            raise ConfigError("there are no contrasts, so nothing to steer for; give at least one.")
        if not 0 < kl_target < np.inf:
            raise ConfigError(
                f"kl_target: {kl_target:g} nats per token are no KL target; give e.g. 0.3."
            )
        self.contrasts = tuple(contrasts)
        self.divergence = divergence
        self.metric = metric
        self.kl_target = kl_target
        self._make_vector = make_vector
        self._keep = keep

    @cached_property
    def at_zero(self) -> Linearisation:
        """The objective around no steering at all."""
        gains = self._zero_gains
        total = sum(self._scales[name] * gain for name, gain in gains.items())
        assert not isinstance(total, int)
        return Linearisation(total, dict.fromkeys(gains, 0.0))

    @cached_property
    def _zero_gains(self) -> Arrays:
        return self._kept(
            np.zeros(0),
            lambda: {c.name: _zero_gain(c) for c in self.contrasts},
        )

    def _kept(self, at: np.ndarray, compute: Callable[[], Arrays]) -> Arrays:
        return compute() if self._keep is None else self._keep(at, compute)

    @cached_property
    def _scales(self) -> dict[str, float]:
        # One unit of each contrast is what its best direction gains at unit cost.
        sizes = {
            name: float(np.sqrt(gain @ self.metric.solve(gain)))
            for name, gain in self._zero_gains.items()
        }
        return {
            c.name: c.weight / sizes[c.name] if sizes[c.name] > 0 else 0.0 for c in self.contrasts
        }

    def around(self, raw: Float[np.ndarray, " d_model"]) -> Linearisation:
        """Linearise around a raw vector, steered both ways at the strengths of the KL target."""
        found = self._kept(raw, lambda: self._around(raw))
        gains = {c.name: found[f"gain.{c.name}"] for c in self.contrasts}
        gain = sum(self._scales[name] * part for name, part in gains.items())
        assert not isinstance(gain, int)
        effects = {c.name: float(found[f"effect.{c.name}"][0]) for c in self.contrasts}
        return Linearisation(gain, effects, *map(float, found["strengths"]))

    def _around(self, raw: Float[np.ndarray, " d_model"]) -> Arrays:
        vector = self._make_vector(raw)
        plus = match_strength(self.divergence, vector, self.kl_target, sign=1, tolerance=0.1)
        minus = match_strength(
            self.divergence, vector, self.kl_target, sign=-1, start=plus.strength, tolerance=0.1
        )
        found: Arrays = {"strengths": np.array([plus.strength, minus.strength])}
        for contrast in self.contrasts:
            up, high = row_gradients(contrast.rows, vector, plus.strength)
            down, low = row_gradients(contrast.rows, vector, minus.strength)
            n = contrast.n_pairs
            found[f"gain.{contrast.name}"] = _margin_gradient(contrast, (up + down) / 2)
            moved = ((high[:n] - high[n:]) - (low[:n] - low[n:])).mean() / 2
            found[f"effect.{contrast.name}"] = np.array([float(moved)])
        return found


def _zero_gain(contrast: Contrast) -> Float[np.ndarray, " d_model"]:
    gradients, _ = row_gradients(contrast.rows)
    gain = _margin_gradient(contrast, gradients)
    # The same texts on both sides leave rounding, which the scale would blow up to full size.
    typical = float(gradients.norm(dim=1).mean())
    return gain if np.linalg.norm(gain) > NO_DIFFERENCE * typical else np.zeros_like(gain)


def _margin_gradient(contrast: Contrast, gradients: Any) -> Float[np.ndarray, " d_model"]:
    n = contrast.n_pairs
    return (gradients[:n] - gradients[n:]).mean(dim=0).double().numpy()
