"""The layouts in which labelled texts come: plain records, human valence, tweet sentiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from saesteer.data.checks import (
    collect,
    did_you_mean_present,
    is_blank,
    optional_text,
    required_text,
    shorten,
)
from saesteer.data.records import Record, RecordFile, check_is_file, read_csv, read_records
from saesteer.utils.errors import DataError

LAYOUTS = ("labelled", "valence", "tweets")
_VALENCE_FIELDS = {"mean_valence", "text"}
_TWEET_FIELDS = {"text", "sentiment"}
_LARGEST_VALENCE = 4.0


@dataclass(frozen=True, slots=True)
class Draft:
    """A labelled text whose label has not been checked against the classes yet."""

    place: str
    text: str
    label: str
    id: str | None = None
    group: str | None = None
    span: str | None = None


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """How to read a file; see `read_labelled`."""

    format: str = "auto"
    text_key: str = "text"
    label_key: str = "label"
    group_key: str | None = None
    threshold: float = 0.5
    skip_blank: bool = False


def drafts_of(path: Path, options: LayoutOptions, *, several: bool) -> tuple[list[Draft], int]:
    """Read one file.

    Args:
        path: The file.
        options: How to read it.
        several: Whether other files are read beside it, so that ids and groups need its name.

    Returns:
        The texts, and how many blank records were left out.

    Raises:
        DataError: The file or a record cannot be used, naming the place.
    """
    file = _records(path)
    layout = options.format if options.format != "auto" else _layout(file, options)
    prefix = f"{path.stem}:" if several else ""
    parse: Callable[[Record], Draft]
    if layout == "valence":
        parse = partial(_valence, threshold=options.threshold, prefix=prefix)
        keys = ("text", "mean_valence")
    elif layout == "tweets":
        parse = partial(_tweet, prefix=prefix)
        keys = ("text", "sentiment")
    else:
        keys = (options.text_key, options.label_key)
        _check_header(file, keys)
        parse = partial(_labelled, options=options, prefix=prefix)
    kept = file.records
    if options.skip_blank:
        kept = [record for record in file.records if not _is_blank(record, keys)]
    return collect(kept, parse), len(file.records) - len(kept)


def _records(path: Path) -> RecordFile:
    if path.suffix.lower() != ".csv":
        return read_records(path)
    check_is_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # As the tweet sets are distributed.
        return read_csv(path, data.decode("latin-1"))
    return read_records(path)


def _layout(file: RecordFile, options: LayoutOptions) -> str:
    first = next((r.value for r in file.records if isinstance(r.value, Mapping)), {})
    fields = set(file.header or first)
    # Fields that the caller named win over a layout that the file happens to have as well.
    if {options.text_key, options.label_key} <= fields:
        return "labelled"
    if fields >= _VALENCE_FIELDS:
        return "valence"
    return "tweets" if fields >= _TWEET_FIELDS else "labelled"


def _check_header(file: RecordFile, keys: Sequence[str]) -> None:
    for key in keys:
        if file.header is not None and key not in file.header:
            near = did_you_mean_present(key, dict.fromkeys(file.header))
            raise DataError(
                f"{file.path}:1: there is no column {key!r}{near}; add it, or name yours with "
                "data.text_key and data.label_key"
            )


def _is_blank(record: Record, keys: Sequence[str]) -> bool:
    value = record.value
    if record.problem is not None or not isinstance(value, Mapping):
        return False
    return any(
        value.get(key) is None or (isinstance(value[key], str) and is_blank(value[key]))
        for key in keys
    )


def _labelled(record: Record, *, options: LayoutOptions, prefix: str) -> Draft:
    fields = record.fields()
    text = _text(fields, options.text_key, record.place)
    label = fields.get(options.label_key)
    if isinstance(label, int | float) and not isinstance(label, bool):
        label = f"{label:g}"
    named = {**fields, options.label_key: label}
    group_key = options.group_key or "group"
    if options.group_key is not None and options.group_key not in fields:
        raise DataError(
            f"{record.place}: there is no field {options.group_key!r} for the group; add it or "
            "leave data.group_key out"
        )
    return Draft(
        record.place,
        text,
        required_text(named, options.label_key, record.place, "so the text has no class"),
        _named(fields, "id", record.place, prefix),
        _named(fields, group_key, record.place, prefix),
        _span(fields, "span", text, record.place),
    )


def _valence(record: Record, *, threshold: float, prefix: str) -> Draft:
    fields = record.fields()
    text = _text(fields, "text", record.place)
    given = fields.get("mean_valence")
    try:
        valence = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        valence = float("nan")
    if not abs(valence) <= _LARGEST_VALENCE:
        raise DataError(
            f"{record.place}: mean_valence is {shorten(given)}; give a number from -4 to 4"
        )
    label = "neutral"
    if abs(valence) >= threshold:
        label = "positive" if valence > 0 else "negative"
    name = _named(fields, "id", record.place, prefix)
    # Ids such as 12_3 are the third sentence of text 12.
    group = None if name is None else name.rpartition("_")[0] or name
    return Draft(record.place, text, label, name, group)


def _tweet(record: Record, *, prefix: str) -> Draft:
    fields = record.fields()
    text = _text(fields, "text", record.place)
    label = required_text(fields, "sentiment", record.place, "so the text has no class").lower()
    key = "textID" if "textID" in fields else "id"
    span = _span(fields, "selected_text", text, record.place)
    return Draft(record.place, text, label, _named(fields, key, record.place, prefix), None, span)


def _text(fields: Mapping[str, object], key: str, place: str) -> str:
    value = fields.get(key)
    if key in fields and (value is None or (isinstance(value, str) and is_blank(value))):
        raise DataError(
            f"{place}: the field {key!r} is blank; give it a text, remove the record or set "
            "data.skip_blank: true"
        )
    return required_text(fields, key, place)


def _named(fields: Mapping[str, object], key: str, place: str, prefix: str) -> str | None:
    value = fields.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{prefix}{value}"
    text = optional_text(fields, key, place)
    return None if text is None else f"{prefix}{text}"


def _span(fields: Mapping[str, object], key: str, text: str, place: str) -> str | None:
    span = optional_text(fields, key, place)
    if span is not None and span not in text:
        raise DataError(
            f"{place}: {key} {shorten(span)} does not stand in the text; give a part of it, "
            "letter by letter"
        )
    return span
