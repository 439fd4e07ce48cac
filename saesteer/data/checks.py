"""Checks on single texts, and the way many bad records become one sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from saesteer.utils.errors import DataError
from saesteer.utils.text import shorten

MAX_CHARACTERS = 20_000

Item = TypeVar("Item")
Result = TypeVar("Result")


def collect(items: Iterable[Item], parse: Callable[[Item], Result]) -> list[Result]:
    """Parse every item, and tell of the first bad one together with how many more there are."""
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


def check_unique(
    named: Iterable[tuple[str, str | None]],
    what: str,
    way_out: str,
    form: Callable[[str], str] = str,
) -> None:
    """Refuse a name, compared in a form, that an earlier record has, naming both places."""
    first: dict[str, str] = {}

    def check(item: tuple[str, str | None]) -> None:
        place, name = item
        if name is None:
            return
        earlier = first.setdefault(form(name), place)
        if earlier != place:
            raise DataError(
                f"{place}: the {what} {shorten(name)} stands at {earlier} already; {way_out}"
            )

    collect(named, check)


def ids_of(
    given: Sequence[tuple[str, str]], number: Callable[[int], str], way_out: str
) -> list[str]:
    """Return every record's id, of its place and id, "" for none; a new one for those without."""
    check_unique(((place, id or None) for place, id in given), "id", way_out)
    taken = {id for _, id in given}
    ids = []
    for count, (_, id) in enumerate(given, start=1):
        made = id or number(count)
        while not id and made in taken:
            made += "a"
        ids.append(made)
    return ids


def check_text(text: str, what: str, place: str, limit: int = MAX_CHARACTERS) -> None:
    """Refuse a text that is too long or that no tokenizer could encode (a lone surrogate)."""
    if len(text) > limit:
        raise DataError(
            f"{place}: {what} has {len(text):,} characters, more than the {limit:,} "
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
