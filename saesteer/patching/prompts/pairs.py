"""Clean and corrupted prompts with their answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from saesteer.data.checks import check_text, is_blank, shorten
from saesteer.utils.errors import DataError


@dataclass(frozen=True)
class PromptPair:
    """Two prompts whose answers differ.

    Attributes:
        clean: The prompt whose behaviour is to be explained.
        corrupted: The prompt that differs from it in what matters alone.
        answer: The clean prompt's right answer, with its leading space where it has one.
        wrong: The corrupted prompt's right answer, which is wrong for the clean one.
        name: What to call the pair in tables and figures.
        alignment: Explicit pairs of (clean, corrupted) token positions, counted from 0 at the
            first token that the prompt's tokenisation gives (BOS included), which go before what
            the equal beginning and the equal end of the two prompts say; None for those alone.
        roles: Names of token positions of the clean prompt, such as {"S2": 10, "end": 14}.
    """

    clean: str
    corrupted: str
    answer: str
    wrong: str
    name: str = ""
    alignment: tuple[tuple[int, int], ...] | None = None
    roles: dict[str, int] = field(default_factory=dict)


def reversed_pair(pair: PromptPair) -> PromptPair:
    """Return the pair the other way round: what was corrupted is clean.

    Its roles are left out: they are positions of the prompt that is corrupted now.
    """
    flipped = None if pair.alignment is None else tuple((b, a) for a, b in pair.alignment)
    return replace(
        pair,
        clean=pair.corrupted,
        corrupted=pair.clean,
        answer=pair.wrong,
        wrong=pair.answer,
        name=f"{pair.name} reversed" if pair.name else "",
        alignment=flipped,
        roles={},
    )


def check_pair(pair: PromptPair, place: str) -> None:
    """Refuse a pair that cannot mean anything.

    Args:
        pair: The pair.
        place: `file:line` or the pair's number, for the message.

    Raises:
        DataError: A prompt or an answer is missing, not text, too long or not encodable, both
            prompts or both answers are the same, or the alignment or a role is no position.
    """
    texts = {
        "the clean prompt": pair.clean,
        "the corrupted prompt": pair.corrupted,
        "the answer": pair.answer,
        "the wrong answer": pair.wrong,
    }
    for what, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{place}: {what} is {shorten(text)}, not text; put it in quotes")
        if is_blank(text):
            raise DataError(f"{place}: {what} is blank; give it a text or remove the record")
        check_text(text, what, place)
    if pair.clean == pair.corrupted:
        raise DataError(
            f"{place}: the clean and the corrupted prompt are both {shorten(pair.clean)}; change "
            "what the answer depends on in one of them"
        )
    if pair.answer.strip() == pair.wrong.strip():
        raise DataError(
            f"{place}: the right and the wrong answer are both {shorten(pair.answer.strip())}; "
            "give the corrupted prompt another answer"
        )
    _check_positions(pair, place)


def _check_positions(pair: PromptPair, place: str) -> None:
    aligned = pair.alignment or ()
    for step in aligned:
        if len(step) != 2 or not all(_is_position(number) for number in step):
            raise DataError(
                f"{place}: the alignment holds {shorten(step)}, which is no pair of token "
                "positions; write [clean position, corrupted position], counted from 0"
            )
    for side, name in enumerate(("clean", "corrupted")):
        named = [step[side] for step in aligned]
        if len(set(named)) < len(named):
            twice = next(number for number in named if named.count(number) > 1)
            raise DataError(
                f"{place}: the alignment names {name} position {twice} twice; name every position "
                "once"
            )
    for role, position in pair.roles.items():
        if not _is_position(position):
            raise DataError(
                f"{place}: role {shorten(role)} is {shorten(position)}, not a token position; "
                "give a whole number from 0"
            )


def _is_position(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
