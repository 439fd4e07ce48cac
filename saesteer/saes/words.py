"""Whole words of tokenised text: which word a token is part of, and what stands around it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from saesteer.models.tokens import TokenRow
from saesteer.saes.lens import TokenTexts

BROKEN = "\N{REPLACEMENT CHARACTER}"
# No character of Unicode has more bytes, so none is spread over more tokens.
MOST_BYTES = 4
LINE_BREAK = "⏎"
# Words with what joins their parts (co-op, o'clock), line breaks, and runs of one other sign.
_UNITS = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|\n\s*|([^\w\s]|_)\1*")
_LONE_WORDS = frozenset("aioAIO")
# Signs with their names.
_NAMES = {
    sign: name
    for name, signs in {
        "full stop": ".",
        "comma": ",",
        "semicolon": ";",
        "colon": ":",
        "question mark": "?",
        "exclamation mark": "!",
        "hyphen": "-",
        "dash": "-- \u2013 \u2014",
        "dots": "... \u2026",
        "opening bracket": "( [",
        "closing bracket": ") ]",
        "quotation mark": '" \u201c \u201d ``',
        "apostrophe": "' \u2018 \u2019",
        "slash": "/",
        "ampersand": "&",
        "dollar sign": "$",
        "per cent sign": "%",
    }.items()
    for sign in signs.split()
} | {"\n": "line break"}
SIGN_NAMES = frozenset(_NAMES.values())


def words_of(text: str) -> list[str]:
    """Return a text's words and numbers."""
    return [unit for unit in (m.group() for m in _UNITS.finditer(text)) if unit[0].isalnum()]


def is_text(text: str) -> bool:
    """Whether a text is of whole words and signs: nothing broken, no lone letter."""
    words = words_of(text)
    whole = all(len(word) > 1 or word in _LONE_WORDS for word in words)
    return bool(words) and whole and text.isprintable() and BROKEN not in text


def is_name(unit: str) -> bool:
    """Whether a unit can stand in a label: a whole word, or a sign's name."""
    return unit in SIGN_NAMES or is_text(unit)


@dataclass(frozen=True)
class RowWords:
    """The words of one row's kept tokens, and other signs (units, both)."""

    text: str
    spans: tuple[tuple[int, int], ...]  # Of each unit in the text.
    unit_of: tuple[int, ...]  # For each kept token its unit; -1 where it is part of none.

    @classmethod
    def of(cls, row: TokenRow, texts: TokenTexts) -> RowWords:
        """Read the kept tokens of a row as text."""
        pieces = _pieces([i for i, kept in zip(row.ids, row.kept, strict=True) if kept], texts)
        text = "".join(pieces)
        spans = tuple(match.span() for match in _UNITS.finditer(text))
        units: list[int] = []
        unit, end = 0, 0
        for piece in pieces:
            start, end = end, end + len(piece)
            # The last unit that begins in the token or before it, if it reaches into it.
            while unit + 1 < len(spans) and spans[unit + 1][0] < end:
                unit += 1
            inside = bool(spans) and spans[unit][0] < end and spans[unit][1] > start
            units.append(unit if inside and piece else -1)
        return cls(text, spans, tuple(units))

    def unit(self, index: int) -> str:
        """Return a unit's text; a sign's is its name, or "" where it has none."""
        found = self.text[slice(*self.spans[index])]
        if found[0].isalnum():
            return found
        return _NAMES.get("\n" if found[0] == "\n" else found, "")

    @property
    def units(self) -> list[str]:
        return [self.unit(index) for index in range(len(self.spans))]

    def around(self, token: int, before: int, after: int) -> tuple[str, str, str]:
        """Return a kept token's word between so many words before and after it, on one line.

        All three are empty where the token is part of no unit.
        """
        unit = self.unit_of[token]
        if unit < 0:
            return "", "", ""
        start, end = self.spans[unit]
        first, last = self._words_away(unit, -before), self._words_away(unit, after)
        word = _flat(self.text[start:end]).strip() or LINE_BREAK
        head, tail = (
            _flat(self.text[self.spans[first][0] : start]),
            _flat(self.text[end : self.spans[last][1]]),
        )
        return head.lstrip(), word, tail.rstrip()

    def _words_away(self, unit: int, words: int) -> int:
        """Return the unit that is so many words on, or as many as there are."""
        step, at = (1 if words > 0 else -1), unit
        while words and 0 <= at + step < len(self.spans):
            at += step
            words -= step if self.text[self.spans[at][0]].isalnum() else 0
        return at


def _flat(text: str) -> str:
    shown = re.sub(r"\s+", " ", text.replace(BROKEN, ""))
    return "".join(char for char in shown if char.isprintable())


def _pieces(ids: Sequence[int], texts: TokenTexts) -> list[str]:
    """Return the text of every token; of a character in several tokens, the last one has it."""
    pieces: list[str] = []
    at = 0
    while at < len(ids):
        taken, piece = 1, texts.one(ids[at])
        while BROKEN in piece and taken < MOST_BYTES and at + taken < len(ids):
            taken += 1
            joined = texts.inside(ids[at : at + taken])
            if BROKEN not in joined:
                piece = joined
        if BROKEN in piece:
            taken, piece = 1, piece.replace(BROKEN, "")
        pieces += [""] * (taken - 1) + [piece]
        at += taken
    return pieces


class WordCounts:
    """How often units stand in text, whatever their case, and how they are mostly written."""

    def __init__(self, rows: Iterable[RowWords]) -> None:
        written = Counter(unit for row in rows for unit in row.units if unit)
        self.counts: Counter[str] = Counter()
        self._forms: dict[str, str] = {}
        for form, count in written.most_common():
            self.counts[form.casefold()] += count
            self._forms.setdefault(form.casefold(), form)
        self.total = max(1, self.counts.total())

    def share(self, unit: str) -> float:
        """Return the share of text that a unit is; never nothing."""
        return (self.counts[unit.casefold()] + 0.5) / self.total

    def form(self, unit: str) -> str:
        """Return how a unit is mostly written."""
        return self._forms.get(unit.casefold(), unit)


def token_words(
    rows: Iterable[tuple[TokenRow, RowWords]], texts: TokenTexts, counts: WordCounts
) -> dict[int, str]:
    """Return the words that tokens stand for: those they are, or that they mostly begin in text.

    Tokens that go on a word, of which less than five letters are there, or that the rows do not
    hold are left out, since they could be any.
    """
    begun: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row, words in rows:
        kept = (i for i, is_kept in zip(row.ids, row.kept, strict=True) if is_kept)
        last = -1
        for token, unit in zip(kept, words.unit_of, strict=True):
            if unit not in (-1, last) and texts.one(token)[:1].isspace():
                begun[token][words.unit(unit).casefold()] += 1
            last = unit
    found: dict[int, str] = {}
    for token, seen in begun.items():
        piece, (word, times) = texts.one(token).strip(), seen.most_common(1)[0]
        alone = piece.casefold() in seen
        word = piece.casefold() if alone else word
        if is_text(word) and (alone or (len(piece) >= 5 and times >= seen.total() / 2)):
            found[token] = counts.form(word)
    return found
