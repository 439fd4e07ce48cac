"""Two published layouts: model-written-evals persona files and CAA A/B files.

Persona files come from Perez et al. 2022, "Discovering Language Model Behaviors with
Model-Written Evaluations" (arXiv:2212.09251); A/B files from Rimsky et al. 2023, "Steering Llama 2
via Contrastive Activation Addition" (arXiv:2312.06681).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from saesteer.data.checks import collect, plain_form
from saesteer.data.near_duplicates import near_duplicate_groups, pair_by_length
from saesteer.data.pairs import ContrastivePair, PairSet
from saesteer.data.schema import Field, Schema
from saesteer.utils.errors import DataError
from saesteer.utils.text import shorten

MATCHING = "answer_matching_behavior"
NOT_MATCHING = "answer_not_matching_behavior"
CONFIDENCE = "label_confidence"
PERSONA = Schema(
    (
        Field("statement", required=True),
        Field(MATCHING, required=True),
        Field(NOT_MATCHING),
        Field(CONFIDENCE, kind="number"),
    ),
    open=True,
)
CHOICE = Schema(
    (
        Field("question", required=True),
        Field(MATCHING, required=True),
        Field(NOT_MATCHING, required=True, kind="any"),
    ),
    open=True,
)

_LETTER = re.compile(r"^\(?([A-Za-z])\)?[.:]?$")
# How options stand in a question, the surest first: on lines of their own, or in one line.
_OPTION_MARKS = tuple(
    re.compile(place + rf"\(({letter})\):?[ \t]*", re.MULTILINE)
    for letter in ("[A-Z]", "[a-z]")
    for place in (r"^[ \t]*", r"(?:(?<=[\s:])|\A)")
)
# A heading begins a line or follows the end of a sentence; anywhere else "the options:" is one's.
_OPTIONS_HEADING = re.compile(
    r"(?:(?:\A|\n|(?<=[.?!:;)\"”…]))[\s*_#]*(?:(?:possible|answer)\s+)?"
    r"(?:choices?|options?|answers?)|\s[*_]*(?-i:Options|Choices|OPTIONS|CHOICES))"
    r"[*_]*\s*:[\s*_]*\Z",
    re.IGNORECASE,
)
_ANSWER_CUE = re.compile(r"\s+(?:assistant|answer)\s*:\s*\(?\s*$", re.IGNORECASE)
_QUESTION_CUE = re.compile(r"^\s*question\s*:\s*", re.IGNORECASE)


class Statement(NamedTuple):
    """One statement of a persona file."""

    place: str
    text: str
    matches: bool  # Whether someone with the trait would say it.
    trusted: bool  # Whether its label is confident enough to be used.


def parse_statement(said: dict[str, Any], place: str, *, floor: float = 0.0) -> Statement:
    """Read the fields of `PERSONA`; statements are trusted from a confidence of `floor` on."""
    answer, other = said[MATCHING].casefold(), said[NOT_MATCHING]
    if answer not in ("yes", "no"):
        raise DataError(
            f"{place}: the field '{MATCHING}' is {shorten(answer)}; "
            "a persona file says Yes or No there"
        )
    if other is not None and {answer, other.casefold()} != {"yes", "no"}:
        raise DataError(
            f"{place}: the fields '{MATCHING}' and '{NOT_MATCHING}' are {shorten(answer)} "
            f"and {shorten(other)}; one of them has to be Yes and the other No"
        )
    confidence = said[CONFIDENCE]
    if confidence is None and floor > 0:
        raise DataError(
            f"{place}: the field '{CONFIDENCE}' is missing and min_label_confidence asks for it; "
            "give a number from 0 to 1"
        )
    trusted = confidence is None or confidence >= floor
    return Statement(place, said["statement"], answer == "yes", trusted)


def pair_statements(
    statements: Sequence[Statement], *, name: str, source: str, place: str, seed: int = 0
) -> PairSet:
    """Pair matching with other statements of about the same length, in the order of the former.

    The statements of a persona file stand alone, so they are paired as by `pair_by_length`; what
    `split_pairs` cannot divide so, it pairs anew inside each part. Untrusted, repeated and
    left-over statements are counted in `dropped`; `place` is the file, for messages.
    """
    sides = _distinct_sides(statements)
    for matches, word in ((True, "Yes"), (False, "No")):
        if not sides[matches]:
            untrusted = sum(not statement.trusted for statement in statements)
            why = f" ({untrusted} are below min_label_confidence)" if untrusted else ""
            raise DataError(
                f"{place}: no statement has '{MATCHING}' {word}{why}, so there is one side only; "
                "give a file with statements of both kinds"
            )
    rng = np.random.default_rng(seed)
    texts = [statement.text for statement in (*sides[True], *sides[False])]
    n = len(sides[True])
    ends = rng.permutation(n), n + rng.permutation(len(texts) - n)
    positive, negative = pair_by_length(texts, near_duplicate_groups(texts), *ends)
    pairs = tuple(
        ContrastivePair(f"{name}-{number:04d}", texts[p], texts[n])
        for number, (p, n) in enumerate(zip(positive, negative, strict=True), start=1)
    )
    dropped = len(statements) - 2 * len(pairs)
    return PairSet(name, pairs, source, dropped, joined=True)


def parse_choice(said: dict[str, Any], place: str) -> dict[str, str]:
    """Take one question of a CAA A/B file apart, as the fields of `CHOICE`.

    The matching option's text is the positive side, the other's (the first of several) the negative
    one, and the stem the prompt, without headings such as "Choices:" and cues such as "Answer:".
    """
    wanted = [_letter(key, said[key], place) for key in (MATCHING, NOT_MATCHING)]
    text = _ANSWER_CUE.sub("", said["question"])
    found = [_option_marks(text, pattern) for pattern in _OPTION_MARKS]
    whole = (marks for marks in found if {mark[1].upper() for mark in marks} >= set(wanted))
    marks = next(whole, found[0] or found[1])
    options: dict[str, str] = {}
    for mark, following in zip_longest(marks, marks[1:]):
        end = following.start() if following else len(text)
        letter = mark[1].upper()
        if letter in options and letter in wanted:
            raise DataError(
                f"{place}: '({mark[1]})' stands in the question twice, so which of them is "
                "the option cannot be told; write each option on its own line, and the letters "
                "nowhere else"
            )
        options[letter] = text[mark.end() : end].strip()
    for letter in wanted:
        if not options.get(letter):
            raise DataError(
                f"{place}: the question has no option '({letter})'; "
                'write the options into it as "(A) ..." and "(B) ...", each on its own line'
            )
    stem = _OPTIONS_HEADING.sub("", text[: marks[0].start()].rstrip())
    stem = _QUESTION_CUE.sub("", stem).strip()
    if not stem:
        raise DataError(
            f"{place}: the field 'question' holds options but no question; "
            "write the question before them"
        )
    return {"positive": options[wanted[0]], "negative": options[wanted[1]], "prompt": stem}


def _option_marks(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The marks of the options, from the heading on where there is one."""
    marks = list(pattern.finditer(text))
    headed = (i for i, m in enumerate(marks) if _OPTIONS_HEADING.search(text[: m.start()]))
    return marks[next(headed, 0) :]


def _distinct_sides(statements: Sequence[Statement]) -> dict[bool, list[Statement]]:
    """The trusted statements of each side, each text once."""
    first: dict[str, Statement] = {}
    sides: dict[bool, list[Statement]] = {True: [], False: []}

    def place_on_its_side(statement: Statement) -> None:
        if not statement.trusted:
            return
        earlier = first.setdefault(plain_form(statement.text), statement)
        if earlier.matches != statement.matches:
            raise DataError(
                f"{statement.place}: this statement stands on the other side at {earlier.place}; "
                "remove one of the two"
            )
        if earlier is statement:
            sides[statement.matches].append(statement)

    collect(statements, place_on_its_side)
    return sides


def _letter(key: str, value: Any, place: str) -> str:
    if isinstance(value, list) and value:
        value = value[0]
    match = _LETTER.match(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise DataError(
            f"{place}: the field '{key}' is {shorten(value)}; an A/B file names an option there, "
            "such as (A)"
        )
    return match[1].upper()
