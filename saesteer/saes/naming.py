"""What a feature is called: the words on which it fires more than chance, with an example."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from saesteer.saes.words import SIGN_NAMES, RowWords, WordCounts, is_name, is_text

# Of the places where a feature fires those count that reach this share of its strongest.
STRONG = 0.5
MOST_WORDS, LONGEST_PHRASE = 4, 4
# What a word has of the places for which it is named, and the fewest for words that lead it.
LEAST_SHARE, FEWEST = 0.04, 3
BEFORE, AFTER = 4, 2  # Words of the example.
NEVER, NAMELESS = "never fired on the table's text", "a sign or a part of a word"


class Place(NamedTuple):
    """Where a feature fires."""

    activation: float
    row: int
    token: int  # Of the row's kept ones.


def name_feature(
    places: Sequence[Place], rows: Sequence[RowWords], counts: WordCounts
) -> tuple[str, list[str]]:
    """Return a feature's label in one line, and the words on which it fires most.

    A word counts by the activation at it, in proportion to chance: by what it adds to the KL
    divergence of the places' words from all words. It is led by those that mostly stand before it
    ("no matter"). The example is the strongest place around which all is whole words.

    Args:
        places: The strongest first, each of another row.
        rows: The words of all rows.
        counts: Of these words.
    """
    if not places:
        return NEVER, []
    least = STRONG * abs(places[0].activation)
    strong = [
        (abs(place.activation), rows[place.row], place.token)
        for place in places
        if abs(place.activation) >= least and rows[place.row].unit_of[place.token] >= 0
    ]
    words = _words(strong, counts)
    phrases = [_phrase(word, strong, counts) for word in words]
    contexts = (row.around(token, BEFORE, AFTER) for _, row, token in strong)
    example = next((one for one in contexts if is_text("".join(one))), None)
    named = [", ".join(phrases)] if phrases else []
    if example is not None:
        before, word, after = example
        named.append(f"“{before}[{word}]{after}”")
    return ": ".join(named) or NAMELESS, [counts.form(word) for word in words]


_Strong = Sequence[tuple[float, RowWords, int]]


def _words(strong: _Strong, counts: WordCounts) -> list[str]:
    masses: dict[str, float] = defaultdict(float)
    for size, row, token in strong:
        masses[row.unit(row.unit_of[token]).casefold()] += size
    total = sum(masses.values())
    shares = {word: mass / total for word, mass in masses.items() if is_name(word)}
    gains = {w: share * math.log(share / counts.share(w)) for w, share in shares.items()}
    kept: list[str] = []
    for word in sorted(gains, key=lambda word: -gains[word]):
        often = shares[word] >= LEAST_SHARE or not kept
        if gains[word] > 0 and often and not any(_related(word, one) for one in kept):
            kept.append(word)
    return kept[:MOST_WORDS]


def _phrase(word: str, strong: _Strong, counts: WordCounts) -> str:
    """Return a word behind those that stand before it at most of its places."""
    places = [(row, row.unit_of[token]) for _, row, token in strong]
    own = [(row, unit) for row, unit in places if row.unit(unit).casefold() == word]
    phrase = [counts.form(word)]
    while len(phrase) < LONGEST_PHRASE:
        before = [(row, unit - 1) for row, unit in own if unit > 0]
        seen = Counter(row.unit(unit).casefold() for row, unit in before)
        led, times = seen.most_common(1)[0] if seen else ("", 0)
        # Signs part phrases.
        if times < max(FEWEST, len(own) / 2) or not is_text(led) or {led, word} & SIGN_NAMES:
            break
        own = [(row, unit) for row, unit in before if row.unit(unit).casefold() == led]
        phrase.insert(0, counts.form(led))
    return " ".join(phrase)


def _related(one: str, other: str) -> bool:
    """Whether two words are forms of one, as far as their first letters tell."""
    shorter = min(len(one), len(other))
    stem = max(4, shorter - 2)
    return one == other or (shorter >= 4 and one[:stem] == other[:stem])
