"""Propensity by statement likelihood: does steering move what the model would say?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.likelihood import TeacherForced, statement_log_likelihoods
from saesteer.models.tokens import encode_statements

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data.pairs import PairSet
    from saesteer.models.sites import Site
    from saesteer.steering import SteeringVector, Unit


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
        site: As in `TeacherForced`.
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
    ) -> Float[np.ndarray, "side pair"]:
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
    """How far a vector moves the held-out pairs.

    Attributes:
        effect: E = mean over pairs of [m_i(a+) - m_i(-a-)] / 2, nats per token.
        low: Lower end of the 95% interval of a bootstrap over pairs; pairs are of one persona, so
            the interval says nothing of other personas.
        high: Upper end.
        moved_share: Share of pairs moved in the intended direction.
        common_shift: Mean over both sides and signs of the change in log-likelihood against the
            unsteered model: what moved matching and non-matching statements alike.
    """

    effect: float
    low: float
    high: float
    moved_share: float
    common_shift: float


def effect_of(
    unsteered: Float[np.ndarray, "side pair"],
    positive: Float[np.ndarray, "side pair"],
    negative: Float[np.ndarray, "side pair"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Effect:
    """Summarise the log-likelihoods at a positive, a negative and no strength.

    Args:
        unsteered: Log-likelihoods without steering, nats per token.
        positive: The same at the positive strength.
        negative: The same at the negative strength.
        resamples: Bootstrap resamples over pairs (percentile interval).
        seed: Seeds the bootstrap.
    """
    from scipy.stats import bootstrap

    moved = ((positive[0] - positive[1]) - (negative[0] - negative[1])) / 2
    shift = float(((positive + negative) / 2 - unsteered).mean())
    low = high = float(moved.mean())
    if len(moved) > 1 and float(np.ptp(moved)) > 0:
        interval = bootstrap(
            (moved,), np.mean, n_resamples=resamples, method="percentile", rng=seed, batch=1000
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Effect(float(moved.mean()), low, high, float((moved > 0).mean()), shift)


def slope(strengths: Sequence[float], margins: Float[np.ndarray, "strength pair"]) -> float:
    """Return the least-squares slope of the mean margin over strength."""
    return float(np.polyfit(np.asarray(strengths), margins.mean(axis=1), 1)[0])
