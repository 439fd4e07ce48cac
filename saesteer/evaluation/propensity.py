"""Propensity by statement likelihood: does steering move what the model would say?"""

from __future__ import annotations

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
