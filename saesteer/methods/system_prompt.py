"""A persona system prompt: not a vector, but what a user would try first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from saesteer.data.pairs import PairSet
from saesteer.methods.estimator import Estimator
from saesteer.utils.errors import ConfigError, DataError


@dataclass(repr=False, eq=False)
class SystemPrompt(Estimator):
    """Two system prompts that describe a persona and its opposite in words.

    Attributes:
        n_statements: How many training statements of a side to quote.
        description: Completes "You are ..." in place of quotes, such as "a warm person who
            forgives easily".
        opposite: The same for the negative side; "the very opposite of" the description if None.
        seed: Seeds which statements are quoted.
        positive_: The prompt that asks for the positive side.
        negative_: The one that asks for the negative side.

    Example:
        >>> prompts = ss.SystemPrompt(description="a saint").fit(model, train)
        >>> prompts.negative_
        'You are the very opposite of a saint.'
    """

    n_statements: Annotated[int, Field(ge=1)] = 4
    description: str | None = None
    opposite: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Check the settings."""
        super().check()
        if self.opposite and not self.description:
            raise ConfigError("opposite: it goes with a description; give description too.")

    def fit(self, model: object, pairs: PairSet, **_: object) -> Self:
        """Write the two prompts.

        Quoted are the shortest of twice as many statements, drawn from the middle half of the
        side's lengths, so that the prompt is typical and still short.

        Args:
            model: Not looked at.
            pairs: Training pairs; not looked at where there is a description.

        Raises:
            DataError: There are no pairs.
        """
        self.check()
        if self.description:
            away = self.opposite or f"the very opposite of {self.description}"
            self.positive_, self.negative_ = _described(self.description), _described(away)
            return self
        if not len(pairs):
            raise DataError(
                f"pairs {pairs.name!r} are empty, so there is nothing to quote; give pairs or a "
                "description."
            )
        self.positive_, self.negative_ = (
            _quoting(_typical(texts, self.n_statements, [self.seed, side]))
            for side, texts in enumerate((pairs.positives, pairs.negatives))
        )
        return self


def _described(text: str) -> str:
    return f"You are {text.strip().rstrip('.')}."


def _quoting(statements: list[str]) -> str:
    quotes = " ".join('"{}"'.format(" ".join(s.split()).replace('"', "'")) for s in statements)
    return f"You are a person who would say things like: {quotes}"


def _typical(texts: tuple[str, ...], count: int, seed: list[int]) -> list[str]:
    # A statement may stand in several pairs, and is quoted once.
    different = list(dict.fromkeys(texts))
    lengths = np.array([len(text) for text in different])
    low, high = np.quantile(lengths, [0.25, 0.75])
    middle = np.flatnonzero((lengths >= low) & (lengths <= high))
    if len(middle) < count:
        # Too few to be choosy: the nearest to the median length.
        middle = np.argsort(np.abs(lengths - np.median(lengths)), kind="stable")[:count]
    drawn = np.random.default_rng(seed).permutation(middle)[: 2 * count]
    shortest = sorted(drawn.tolist(), key=lambda index: (lengths[index], index))[:count]
    return [different[index] for index in shortest]
