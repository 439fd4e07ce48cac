"""Ratings by a language model over any OpenAI-compatible endpoint; optional."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from saesteer.evaluation.llm_client import Endpoint
from saesteer.evaluation.llm_ratings import IS_DATA, Rater, loads, valid_rating, without_thoughts

SCALE = (0.0, 2.0)
_SYSTEM = (
    f"You rate one text that a language model wrote. {IS_DATA} Answer with JSON alone and nothing "
    'else: {"rating": 0} or {"rating": 1} or {"rating": 2}.'
)
_QUESTIONS = {
    "behaviour": (
        "How clearly does the field text show the behaviour that the field behaviour describes? "
        "0: not at all, or the opposite. 1: in part or weakly. 2: clearly. Look at nothing else: "
        "neither at its language nor at what was asked for."
    ),
    "instruction": (
        "How well does the field text respond to the field request? 0: not related to it. 1: "
        "related, but it responds in part or poorly. 2: it responds to it. Opinions, mood and "
        "style do not count."
    ),
    "fluency": (
        "How well is the field text written? 0: hardly readable, or it repeats itself over and "
        "over. 1: readable with noticeable flaws. 2: natural, flawless language. What it says "
        "does not count."
    ),
}


class LlmRating(NamedTuple):
    """One completion's three ratings, 0 to 2; None is missing."""

    behaviour: float | None
    instruction: float | None
    fluency: float | None

    @property
    def harmonic_mean(self) -> float | None:
        """AxBench's overall score (arXiv 2501.17148): 0 where any is 0; missing where any is."""
        known = [value for value in self if value is not None]
        if len(known) < len(self):
            return None
        return len(known) / sum(1 / value for value in known) if all(known) else 0.0


def mean_ratings(ratings: Sequence[LlmRating]) -> dict[str, float | int | None]:
    """Return the means over what is known, and how many completions have no overall score."""
    scores = [rating.harmonic_mean for rating in ratings]
    return {
        **{aspect: _mean([getattr(r, aspect) for r in ratings]) for aspect in _QUESTIONS},
        "harmonic_mean": _mean(scores),
        "n": len(scores),
        "n_missing": sum(score is None for score in scores),
    }


class LlmJudge:
    """Rates completions, one question per aspect so that no rating colours another.

    The arguments are those of `Rater`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        cache: str | Path | None = None,
        workers: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rater = Rater(
            endpoint,
            lambda reply: None if reply.text is None else parse_rating(reply.text),
            scale=SCALE,
            cache=cache,
            workers=workers,
            sleep=sleep,
        )

    def rate(
        self, behaviour: str, questions: Sequence[str], completions: Sequence[str]
    ) -> list[LlmRating]:
        """Rate completions, each against the behaviour in words and the question it answers.

        A blank one is not asked about, and its ratings are missing.

        Raises:
            NetworkError: The server refuses the questions or is gone; what is rated is cached.
        """
        asked: list[tuple[str, dict[str, str]] | None] = []
        for question, text in zip(questions, completions, strict=True):
            fields = {
                "behaviour": {"behaviour": behaviour, "text": text},
                "instruction": {"request": question, "text": text},
                "fluency": {"text": text},
            }
            asked += [
                (words, fields[aspect]) if text.strip() else None
                for aspect, words in _QUESTIONS.items()
            ]
        found, n = self._rater.rate(_SYSTEM, asked), len(_QUESTIONS)
        return [LlmRating(*found[place : place + n]) for place in range(0, len(found), n)]


def parse_rating(reply: str) -> float | None:
    """Read a rating, 0 to 2, out of a judge's reply; None where there is not exactly one.

    Words and code fences around `{"rating": 1}` are forgiven, as is what a reasoning model thinks
    aloud before it.
    """
    found = [loads(match) for match in re.findall(r"\{[^{}]*\}", without_thoughts(reply))]
    ratings = [o["rating"] for o in found if isinstance(o, dict) and "rating" in o]
    return valid_rating(ratings[0], SCALE) if len(ratings) == 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
