"""Checks on single fields, and the way many bad records become one sentence."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from saesteer.utils.errors import DataError

MAX_CHARACTERS = 20_000

Item = TypeVar("Item")
Result = TypeVar("Result")


def collect(items: Iterable[Item], parse: Callable[[Item], Result]) -> list[Result]:
    """Parse every item, and tell of the first bad one together with how many more there are.

    Args:
        items: What to parse.
        parse: Raises DataError for a bad item.

    Returns:
        The parsed items, in order.

    Raises:
        DataError: At least one item is bad.
    """
    results: list[Result] = []
    first: DataError | None = None
    bad = 0
    for item in items:
        try:
            results.append(parse(item))
        except DataError as error:
            first = first or error
            bad += 1
    if first is not None:
        more = f" (and {bad - 1} more)" if bad > 1 else ""
        raise DataError(f"{first}{more}")
    return results


def shorten(value: object, limit: int = 40) -> str:
    """Quote a value for a message, cut to `limit` characters and kept on one line."""
    if isinstance(value, str):
        return repr(value if len(value) <= limit else f"{value[:limit]}...")
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint in brackets with the closest known word, or nothing when none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(word.strip().lower(), list(by_lower), n=1, cutoff=0.5)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""


def spoken_list(words: Sequence[str]) -> str:
    """Join words as in a sentence: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def check_known_fields(
    fields: Iterable[str], known: Sequence[str], place: str, hint: str = ""
) -> None:
    """Refuse the first field that is not among the known ones.

    Args:
        fields: Field names of one record, or the header of a table.
        known: The field names that are allowed.
        place: `file:line`, for the message.
        hint: A further way out, added to the message.

    Raises:
        DataError: A field is unknown.
    """
    for field in fields:
        if field in known:
            continue
        if not field.strip():
            raise DataError(
                f"{place}: a column has no name; remove it (pandas writes one unless "
                "index=False is given)"
            )
        raise DataError(
            f"{place}: unknown field {shorten(field)}{did_you_mean(field, known)}; "
            f"the fields are {spoken_list(known)}{hint}"
        )


def required_text(fields: Mapping[str, object], key: str, place: str, why: str = "") -> str:
    """Take a text that must be there.

    Args:
        fields: One record.
        key: Name of the field.
        place: `file:line`, for the message.
        why: What a missing field means, for the message.

    Returns:
        The text without white space around it.

    Raises:
        DataError: The field is missing, blank, not text, too long or not encodable.
    """
    text = optional_text(fields, key, place)
    if text is not None:
        return text
    state = "blank" if fields.get(key) is not None else "missing"
    hint = "" if key in fields else did_you_mean_present(key, fields)
    raise DataError(
        f"{place}: the field '{key}' is {state}{hint}{why and f', {why}'}; "
        "give it a text or remove the record"
    )


def did_you_mean_present(key: str, fields: Mapping[str, object]) -> str:
    """A hint in brackets when the record has a field whose name is close to the missing one."""
    close = difflib.get_close_matches(key, [str(field) for field in fields], n=1, cutoff=0.7)
    return f" (the record has '{close[0]}')" if close else ""


def optional_text(fields: Mapping[str, object], key: str, place: str) -> str | None:
    """Take a text that may be missing or blank (then None); see `required_text`."""
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(
            f"{place}: the field '{key}' is {shorten(value)}, not text; put it in quotes"
        )
    check_text(value, f"the field '{key}'", place)
    return None if is_blank(value) else value.strip()


def check_text(text: str, what: str, place: str) -> None:
    """Refuse a text that is too long or that no tokenizer could encode.

    Raises:
        DataError: The text has more than `MAX_CHARACTERS` characters or a lone surrogate.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(
            f"{place}: {what} has {len(text):,} characters, more than the {MAX_CHARACTERS:,} "
            "allowed; shorten it or split it into several records"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {what} holds half of a character (a lone surrogate) at position "
            f"{error.start + 1}; write that character out or remove it"
        ) from None


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only spaces, separators and invisible characters."""
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def plain_form(text: str) -> str:
    """Return the form in which texts are compared.

    Letters in one Unicode form (NFKC), single spaces, nothing invisible; case is kept.
    """
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", visible).split())
