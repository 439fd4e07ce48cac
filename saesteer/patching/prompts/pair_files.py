"""Reading prompt pairs: from the user's files, from bundled sets, from Python mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from saesteer.data.bundled import datasets_folder
from saesteer.data.checks import check_known_fields, collect, shorten, spoken_list
from saesteer.data.records import Record, read_records
from saesteer.patching.prompts.pairs import PromptPair, check_pair
from saesteer.utils.errors import DataError

FIELDS = ("clean", "corrupted", "name", "alignment", "roles")
SIDE_FIELDS = ("question", "answer")
# An answer behind one of these is written without a space.
_OPENERS = "([{<\"'\u201c\u2018-/"


def bundled_prompt_sets() -> tuple[str, ...]:
    """Name the bundled sets of prompt pairs; empty where none is installed."""
    try:
        folder = datasets_folder()
    except DataError:
        return ()
    return tuple(sorted(path.stem for path in (folder / "patching").glob("*.json")))


def read_prompt_pairs(source: str | Path) -> tuple[PromptPair, ...]:
    """Read prompt pairs and check every one of them.

    Args:
        source: Path of a JSON list, of `{"pairs": [...]}` or of a JSONL file; or the name of a
            bundled set, such as "capitals" (write `./capitals` for a file of your own that is
            called like one). A record is `{"clean": {"question", "answer"}, "corrupted":
            {"question", "answer"}}` with an optional name, alignment (list of [clean, corrupted]
            token positions) and roles (object of token positions of the clean prompt). Records
            with the fields question, immediate and long_term, as in justinshenk/temporal-awareness,
            are read as two orders of the same two options.

    Returns:
        The pairs in the order of the file. An answer without a leading space gets one where its
        prompt ends in a word or a mark that a space follows.

    Raises:
        DataError: The source cannot be used; the sentence names file and line.
    """
    file = read_records(_find(source))
    return tuple(collect(file.records, _pair))


def prompt_pairs_from(
    records: Iterable[PromptPair | Mapping[str, Any]], name: str = "pairs"
) -> tuple[PromptPair, ...]:
    """Make prompt pairs from Python values, checked as a file would be.

    Args:
        records: Pairs, or mappings as in `read_prompt_pairs`.
        name: What to call the whole in messages.

    Raises:
        DataError: A record cannot be used, or there is none.
    """
    numbered = [(f"{name}: record {i}", value) for i, value in enumerate(records, start=1)]
    if not numbered:
        raise DataError(f"{name}: there is no pair of prompts; give at least one")

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
