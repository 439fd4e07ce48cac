"""Sentiment by VADER: a confound check that knows nothing of the persona."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from saesteer.utils.errors import ModelError

INSTALL = "pip install vaderSentiment"


def vader_compound(texts: Sequence[str]) -> Float[np.ndarray, " text"]:
    """Return VADER's compound score of each text (Hutto and Gilbert 2014, ICWSM).

    Args:
        texts: Any texts.

    Returns:
        From -1 (most negative) over 0 (neutral, or no word that VADER knows) to 1 (most
        positive); NaN, that is missing, for a text without a visible character.

    Raises:
        ModelError: The package vaderSentiment is not installed.
    """
    analyzer = _analyzer()
    scores = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        if text.strip():
            scores[row] = analyzer.polarity_scores(text)["compound"]
    return scores


# Reading the lexicon takes a tenth of a second, and it never changes.
@lru_cache(maxsize=1)
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ModelError(
            f"sentiment needs the package vaderSentiment, which is not installed; run: {INSTALL}"
        ) from error
    return SentimentIntensityAnalyzer()
