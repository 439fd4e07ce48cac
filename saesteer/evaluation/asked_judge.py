"""A language model over an endpoint as the judge: which of two described speakers said it?"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saesteer.data.pairs import Description
from saesteer.evaluation.judge import Judge, Readings
from saesteer.evaluation.llm_client import Endpoint, Reply
from saesteer.evaluation.llm_ratings import IS_DATA, Rater, without_thoughts

SCALE = (1.0, 7.0)
# The most that OpenAI and vLLM give.
_ALTERNATIVES = 20
_SYSTEM = (
    f"You say which of two speakers a text is by. {IS_DATA} Answer with one number from 1 to 7 "
    "alone and nothing else."
)
_QUESTION = (
    "The field text was said in answer to the field question by one of two speakers, whom the "
    "fields first and second describe. Who said it? 1: surely the first. 4: it could be either as "
    "well. 7: surely the second. Numbers between say how sure you are."
)


class AskedJudge(Judge):
    """A number from 1 to 7, for the negative or the positive speaker.

    Where the server gives log-probabilities the reading is the number's expectation over them,
    as of G-Eval (arXiv 2303.16634), which tells apart what one number at temperature 0 does not.

    Args:
        endpoint: Whom to ask; the texts go there.
        description: Either side in a line.
        cache: A JSON lines file of readings, by which a run that was cut off goes on.
        workers: Questions under way at once.
        sleep: Waits.
    """

    kind = "llm"

    def __init__(
        self,
        endpoint: Endpoint,
        description: tuple[str, str],
        *,
        cache: str | Path | None = None,
        workers: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # The model may judge by its own likelihoods too.
        self.name = f"{endpoint.model}, asked"
        self._sides = Description(*description)
        self._rater = Rater(
            endpoint, side_number, scale=SCALE, cache=cache, workers=workers, sleep=sleep
        )

    def read(self, texts: Sequence[str], questions: Sequence[str]) -> Readings:
        """Return the numbers; NaN for a blank text and where the model gave none.

        Raises:
            NetworkError: The server refuses the questions or is gone; what was read is cached.
        """
        speakers = {"first": self._sides.negative, "second": self._sides.positive}
        found = self._rater.rate(
            _SYSTEM,
            [
                (_QUESTION, {**speakers, "question": question, "text": text})
                if text.strip()
                else None
                for question, text in zip(questions, texts, strict=True)
            ],
            logprobs=True,
            top_logprobs=_ALTERNATIVES,
        )
        return np.array(found, dtype=np.float64)


def side_number(reply: Reply) -> float | None:
    """Read the number out of a reply, its expectation where there are log-probabilities."""
    numbers = re.findall(r"(?<![\d.])[1-7](?![\d.]*\d)", without_thoughts(reply.text or ""))
    if len(numbers) != 1:
        return None
    return _expected(reply.body, numbers[0]) or float(numbers[0])


def _expected(body: Any, number: str) -> float | None:
    try:
        # What is thought aloud comes before.
        said = [t for t in body["choices"][0]["logprobs"]["content"] if t["token"].strip()]
        place = next(t for t in reversed(said) if t["token"].strip() == number)
        weights: dict[int, float] = {}
        for option in place["top_logprobs"]:
            if re.fullmatch("[1-7]", word := option["token"].strip()):
                weights[int(word)] = weights.get(int(word), 0.0) + math.exp(option["logprob"])
        return sum(n * w for n, w in weights.items()) / sum(weights.values())
    # Every server has its own idea of what stands there.
    except (ArithmeticError, AttributeError, KeyError, LookupError, StopIteration, TypeError):
        return None
