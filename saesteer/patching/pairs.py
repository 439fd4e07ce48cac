"""Clean and corrupted prompts with their answers, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saesteer.data.bundled import datasets_folder
from saesteer.data.checks import (
    check_known_fields,
    check_text,
    collect,
    is_blank,
    shorten,
    spoken_list,
)
from saesteer.data.records import Record, read_records
from saesteer.utils.errors import DataError

FIELDS = ("clean", "corrupted", "name", "alignment", "roles")
SIDE_FIELDS = ("question", "answer")
# An answer behind one of these is written without a space.
_OPENERS = "([{<\"'\u201c\u2018-/"


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

    Example:
        >>> ss.PromptPair("I like the", "I hate the", answer=" cat", wrong=" dog").answer
        ' cat'
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
    """Refuse a pair that cannot mean anything; `place` is `file:line` or the pair's number."""
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


def bundled_prompt_sets() -> tuple[str, ...]:
    """Name the bundled sets of prompt pairs; empty where none is installed."""
    try:
        folder = datasets_folder()
    except DataError:
        return ()
    return tuple(sorted(path.stem for path in (folder / "patching").glob("*.json")))


def load_prompt_pairs(
    source: str | Path | Iterable[PromptPair | Mapping[str, Any]],
) -> tuple[PromptPair, ...]:
    """Read prompt pairs and check every one of them.

    Args:
        source: Path of a JSON list, of `{"pairs": [...]}` or of a JSONL file; the name of a
            bundled set, such as "capitals" (write `./capitals` for a file of your own that is
            called like one); or records from Python. A record is `{"clean": {"question",
            "answer"}, "corrupted": {"question", "answer"}}` with an optional name, alignment (list
            of [clean, corrupted] token positions) and roles (object of token positions of the
            clean prompt). Records with the fields question, immediate and long_term, as in
            justinshenk/temporal-awareness, are read as two orders of the same two options.

    Returns:
        The pairs in the order of the file. An answer without a leading space gets one where its
        prompt ends in a word or a mark that a space follows.

    Raises:
        DataError: The source cannot be used; the sentence names file and line.

    Example:
        >>> pairs = ss.load_prompt_pairs("capitals")
        >>> len(pairs) > 0 and pairs[0].clean != pairs[0].corrupted
        True
    """
    if isinstance(source, str | Path):
        return tuple(collect(read_records(_find(source)).records, _pair))
    numbered = [(f"pairs: record {i}", value) for i, value in enumerate(source, start=1)]
    if not numbered:
        raise DataError("pairs: there is no pair of prompts; give at least one")

    def parse(item: tuple[str, PromptPair | Mapping[str, Any]]) -> PromptPair:
        place, value = item
        if isinstance(value, PromptPair):
            check_pair(value, place)
            return value
        return _pair(Record(place, value))

    return tuple(collect(numbered, parse))


def _find(source: str | Path) -> Path:
    path = Path(source)
    bundled = bundled_prompt_sets()
    if str(source) in bundled:
        return datasets_folder() / "patching" / f"{source}.json"
    if isinstance(source, str) and len(path.parts) == 1 and not path.suffix and not path.exists():
        raise DataError(
            f"there is no bundled set of prompt pairs called {shorten(source)}; the sets are "
            f"{spoken_list(bundled) if bundled else 'not installed'}, or give a file's path"
        )
    return path


def _pair(record: Record) -> PromptPair:
    fields = record.fields()
    if "immediate" in fields and "long_term" in fields:
        return _choice_pair(fields, record.place)
    check_known_fields([str(field) for field in fields], FIELDS, record.place)
    clean, answer = _side(fields, "clean", record.place)
    corrupted, wrong = _side(fields, "corrupted", record.place)
    name = fields.get("name", "")
    if not isinstance(name, str):
        raise DataError(
            f"{record.place}: the field 'name' is {shorten(name)}, not text; put it in quotes"
        )
    pair = PromptPair(
        clean,
        corrupted,
        answer,
        wrong,
        name,
        _alignment(fields.get("alignment"), record.place),
        _roles(fields.get("roles"), record.place),
    )
    check_pair(pair, record.place)
    return pair


def _side(fields: Mapping[str, Any], side: str, place: str) -> tuple[str, str]:
    value = fields.get(side)
    if not isinstance(value, Mapping):
        state = "missing" if value is None else shorten(value)
        raise DataError(
            f'{place}: the field \'{side}\' is {state}; write it as {{"question": "...", '
            '"answer": "..."}'
        )
    check_known_fields([str(field) for field in value], SIDE_FIELDS, f"{place}: {side}")
    texts = []
    for key in SIDE_FIELDS:
        text = value.get(key)
        if not isinstance(text, str):
            state = "missing" if text is None else f"{shorten(text)}, not text"
            raise DataError(
                f"{place}: the field '{key}' of {side} is {state}; give it a text in quotes"
            )
        texts.append(text)
    return texts[0], _after(texts[0], texts[1])


def _after(question: str, answer: str) -> str:
    # A record's question and answer are two texts, and a space stands between two words.
    apart = question[-1:].isspace() or question[-1:] in _OPENERS
    return f" {answer}" if answer[:1].isalnum() and question and not apart else answer


def _alignment(value: Any, place: str) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(s, list | tuple) for s in value):
        raise DataError(
            f"{place}: the field 'alignment' is {shorten(value)}; write a list of [clean "
            "position, corrupted position]"
        )
    return tuple(tuple(step) for step in value)  # type: ignore[misc]


def _roles(value: Any, place: str) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(
            f"{place}: the field 'roles' is {shorten(value)}; write an object such as "
            '{"end": 14}'
        )
    return {str(role): position for role, position in value.items()}


def _choice_pair(fields: Mapping[str, Any], place: str) -> PromptPair:
    texts = []
    for key in ("question", "immediate", "long_term"):
        text = fields.get(key)
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{place}: the field '{key}' is {shorten(text)}; give it a text in quotes"
            )
        texts.append(text.strip())
    question, *options = texts
    # The options' own letters go: which option has which letter is what the two prompts vary.
    near, far = (option[3:].strip() if option[:1] == "(" else option for option in options)

    def prompt(first: str, second: str) -> str:
        return f"{question}\n(A) {first}\n(B) {second}\nThe short-term choice is ("

    pair = PromptPair(
        prompt(near, far), prompt(far, near), "A", "B", f"{shorten(question, 60)[1:-1]}"
    )
    check_pair(pair, place)
    return pair
