"""Contrastive activation addition at the answer letters of A/B questions."""

from __future__ import annotations

from dataclasses import dataclass

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector


@dataclass(repr=False, eq=False)
class CAA(Method):
    """The mean over questions of the matching letter's activation minus the other letter's.

    Contrastive activation addition as published (Rimsky et al. 2024, arXiv 2312.06681): the same
    question with both statements as options, answered once with each letter, read at the letter.

    Example:
        >>> vector = ss.CAA().fit(model, train, site=sae.site).vector_
        >>> vector.read_positions
        'answer letter token'
    """

    _name = "caa_answers"

    def _vector(self, given: FitContext) -> SteeringVector:
        return given.vector(
            given.answers.deltas.mean(dim=0),
            self.name,
            self.get_params(),
            read_positions="answer letter token",
        )
