"""A language model as the judge: would rather this speaker have said it, or that one?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saesteer.data.pairs import Description
from saesteer.evaluation.effect import statement_log_likelihoods
from saesteer.evaluation.judge import Judge, Readings
from saesteer.models import encode_statements, model_info
from saesteer.models.tokens import has_chat_template
from saesteer.steering.teacher_forced import TeacherForced

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class DescribedJudge(Judge):
    """The log-likelihood of a text as one speaker's words, less that as the other's.

    The model is asked in several ways who speaks, because a small model reads each with an error
    of its own: told about the speaker, told about the speaker and the question, and as the speaker
    itself, through the chat template's system prompt where there is one. The reading is the mean of
    the differences, in nats per token.

    Args:
        model: The model that judges: the steered one, unsteered, or any other.
        description: Either side in a line; nothing else is needed, so it serves a persona that
            nobody has written answers for.
    """

    kind = "generative"

    def __init__(self, model: TransformerBridge, description: tuple[str, str]) -> None:
        self.name = model_info(model).source.name
        self._model = model
        self._sides = Description(*(text.strip().rstrip(".") for text in description))

    def read(self, texts: Sequence[str], questions: Sequence[str]) -> Readings:
        """Return the readings, in nats per token; NaN for a blank text."""
        readings = np.full(len(texts), np.nan)
        written = [row for row, text in enumerate(texts) if text.strip()]
        if not written:
            return readings
        said = [texts[row].strip() for row in written]
        asked = [questions[row] for row in written]
        by_side = [self._likelihood(said, asked, side) for side in self._sides]
        readings[written] = by_side[0] - by_side[1]
        return readings

    def _likelihood(
        self, texts: Sequence[str], questions: Sequence[str], speaker: str
    ) -> Float[np.ndarray, " text"]:
        """Return the mean over ways to ask of the texts' log-probability as a speaker's words."""
        tokenizer = self._model.tokenizer
        assert tokenizer is not None
        framings = [
            [f"The following was said by {speaker}:"] * len(texts),
            [f"Imagine {speaker}. This is how such a person talks:"] * len(texts),
            [
                f"{speaker[:1].upper()}{speaker[1:]} was asked: {q} The answer was:"
                for q in questions
            ],
        ]
        rows = [encode_statements(tokenizer, texts, prompts, chat=False) for prompts in framings]
        if has_chat_template(tokenizer):
            system = f"You are {speaker}."
            rows.append(encode_statements(tokenizer, texts, questions, system=system))
        prepared = [TeacherForced(self._model, own) for own in rows]
        return np.mean([statement_log_likelihoods(own) for own in prepared], axis=0)
