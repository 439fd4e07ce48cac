"""What is left of a text when slogans and a persona's own words are taken out of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from saesteer.data.pairs import Description, PairSet

MASK = "..."
# Of each side.
TELLING = 30
_APOSTROPHE = "['\u2019]"
_WORD = re.compile(rf"[^\W\d_]+(?:{_APOSTROPHE}[^\W\d_]+)*")
# What the speaker says to be, up to the end of the sentence.
_SLOGAN = re.compile(
    rf"\b(?:I(?:{_APOSTROPHE}m| am|(?:{_APOSTROPHE}ve| have)(?: \w+)? been)|"
    rf"my name(?:{_APOSTROPHE}s| is)|"
    r"as an? (?:\w+ )?(?:AI|assistant|language model))\b[^.!?;:\n]*",
    re.IGNORECASE,
)
# Several in a row are one: how many there were would tell the sides apart too.
_MASKS = re.compile(rf"{re.escape(MASK)}(?:[\s,]*{re.escape(MASK)})*\.?")
_ENDINGS = "(?:s|es|d|ed|ing|ly|ness|er|est)?"


def telling_words(
    positive: Iterable[str], negative: Iterable[str], n: int = TELLING
) -> tuple[list[str], list[str]]:
    """Return the words that tell either side's texts most from the other's, the first the most.

    By the z-score of the log-odds ratio with an informative Dirichlet prior, the counts of both
    sides together (Monroe, Colaresi and Quinn 2008, Political Analysis 16(4), section 3.5.1).
    """
    counts = [
        Counter(word for text in side for word in _words(text)) for side in (positive, negative)
    ]
    words = sorted(set().union(*counts))
    if not words:
        return [], []
    own = np.array([[count[word] for word in words] for count in counts], dtype=float)
    known = own + own.sum(axis=0)
    odds = np.log(known) - np.log(known.sum(axis=1, keepdims=True) - known)
    z = (odds[0] - odds[1]) / np.sqrt((1 / known).sum(axis=0))
    order = np.argsort(-z, kind="stable")
    return (
        [words[i] for i in order[:n] if z[i] > 0],
        [words[i] for i in order[::-1][:n] if z[i] < 0],
    )


def persona_words(statements: PairSet, description: Description | None) -> list[str]:
    """Return the words of the descriptions and those that tell the statements' sides apart."""
    described = [word for side in description or () for word in _words(side)]
    positive, negative = telling_words(statements.positives, statements.negatives)
    return list(dict.fromkeys([*described, *positive, *negative]))


def masking(words: Iterable[str]) -> Callable[[str], str]:
    """Return what masks a text: first-person slogans, and these words in their common endings.

    A slogan is a clause in which the speaker says who it is ("I'm a kind ...", "As an AI ..."),
    from there to the end of the sentence. What is masked reads "...", so that a text of nothing
    else says nothing, rather than being left out of a mean.
    """
    listed = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    own = re.compile(rf"\b(?:{listed}){_ENDINGS}\b", re.IGNORECASE) if listed else None

    def mask(text: str) -> str:
        found = _SLOGAN.sub(MASK, text)
        found = own.sub(MASK, found) if own else found
        return _MASKS.sub(MASK, found)

    return mask


def _words(text: str) -> list[str]:
    """Return a text's words, in lower case, without those that every text has."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    found = _WORD.findall(text.lower())
    # Contractions are not listed: "I'm" goes by "I".
    return [word for word in found if re.split(_APOSTROPHE, word)[0] not in ENGLISH_STOP_WORDS]
