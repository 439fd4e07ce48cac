"""Clean and corrupted prompts with their answers, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saesteer.data.bundled import bundled_names, datasets_folder
from saesteer.data.checks import check_text, collect, is_blank
from saesteer.data.records import Record, read_records
from saesteer.data.schema import Field, Schema
from saesteer.utils.errors import DataError
from saesteer.utils.text import shorten, spoken_list

_SIDE = Schema(
    tuple(Field(name, required=True, strip=False) for name in ("question", "answer")),
)
_PAIR = Schema(
    (
        Field("clean", kind="record", required=True, of=_SIDE),
        Field("corrupted", kind="record", required=True, of=_SIDE),
        Field("name"),
        Field("alignment", kind="any"),
        Field("roles", kind="any"),
    )
)
_CHOICE = Schema(
    tuple(Field(name, required=True) for name in ("question", "immediate", "long_term")), open=True
)
# An answer behind one of these is written without a space.
_OPENERS = "([{<\"'\u201c\u2018-/"


@dataclass(frozen=True)
class PromptPair:
    """Two prompts whose answers differ.

    Example:
        >>> ss.PromptPair("I like the", "I hate the", answer=" cat", wrong=" dog").answer
        ' cat'
    """

    # The prompt whose behaviour is to be explained, and the one that differs from it in what
    # matters alone.
    clean: str
    corrupted: str
    # The clean prompt's right answer, and the corrupted prompt's, which is wrong for the clean one;
    # each with its leading space where it has one.
    answer: str
    wrong: str
    name: str = ""
    # Explicit pairs of (clean, corrupted) token positions, counted from 0 at the first token that
    # the prompt's tokenisation gives (BOS included), which go before what the equal beginning and
    # the equal end of the two prompts say; None for those alone.
    alignment: tuple[tuple[int, int], ...] | None = None
    # Names of token positions of the clean prompt, such as {"S2": 10, "end": 14}.
    roles: dict[str, int] = field(default_factory=dict)


def check_pair(pair: PromptPair, place: str) -> PromptPair:
    """Return a pair unless it cannot mean anything; `place` is `file:line` or the pair's number."""
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
    _check_alignment(pair.alignment, place)
    if not isinstance(pair.roles, Mapping) or not all(map(_is_position, pair.roles.values())):
        raise DataError(
            f"{place}: the roles are {shorten(pair.roles)}, not names of token positions; write "
            'them as {"end": 14}, counted from 0'
        )
    return pair


def _check_alignment(steps: Any, place: str) -> None:
    if steps is None:
        return
    if not isinstance(steps, list | tuple) or not all(
        isinstance(step, list | tuple) and len(step) == 2 and all(map(_is_position, step))
        for step in steps
    ):
        raise DataError(
            f"{place}: the alignment is {shorten(steps)}, not pairs of token positions; write "
            "[[clean position, corrupted position], ...], counted from 0"
        )
    for side, name in enumerate(("clean", "corrupted")):
        named = [step[side] for step in steps]
        if len(set(named)) < len(named):
            twice = next(number for number in named if named.count(number) > 1)
            raise DataError(
                f"{place}: the alignment names {name} position {twice} twice; name every position "
                "once"
            )


def _is_position(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def bundled_prompt_sets() -> tuple[str, ...]:
    """Name the bundled sets of prompt pairs; empty where none is installed."""
    return bundled_names("patching")


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
    records = [Record(f"pairs: record {i}", value) for i, value in enumerate(source, start=1)]
    if not records:
        raise DataError("pairs: there is no pair of prompts; give at least one")
    return tuple(collect(records, _pair))


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
    if isinstance(record.value, PromptPair):
        return check_pair(record.value, record.place)
    if {"immediate", "long_term"} <= record.fields().keys():
        return _choice_pair(record)
    said = _PAIR.read(record)
    clean, corrupted = said["clean"], said["corrupted"]
    steps, roles = said["alignment"], said["roles"]
    pair = PromptPair(
        clean["question"],
        corrupted["question"],
        _after(**clean),
        _after(**corrupted),
        said["name"] or "",
        steps,
        {} if roles is None else roles,
    )
    check_pair(pair, record.place)
    return pair if steps is None else replace(pair, alignment=tuple(map(tuple, steps)))


def _after(question: str, answer: str) -> str:
    # A record's question and answer are two texts, and a space stands between two words.
    apart = question[-1:].isspace() or question[-1:] in _OPENERS
    return f" {answer}" if answer[:1].isalnum() and question and not apart else answer


def _choice_pair(record: Record) -> PromptPair:
    said = _CHOICE.read(record)
    # The options' own letters go: which option has which letter is what the two prompts vary.
    near, far = (
        option[3:].strip() if option[:1] == "(" else option
        for option in (said["immediate"], said["long_term"])
    )

    def prompt(first: str, second: str) -> str:
        return f"{said['question']}\n(A) {first}\n(B) {second}\nThe short-term choice is ("

    name = shorten(said["question"], 60)[1:-1]
    return check_pair(
        PromptPair(prompt(near, far), prompt(far, near), "A", "B", name), record.place
    )
