"""What the fields of a record are called and may hold; one table of fields for each layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from saesteer.data.checks import MAX_CHARACTERS, check_text, collect, is_blank
from saesteer.data.records import Record, RecordFile
from saesteer.utils.errors import DataError
from saesteer.utils.text import did_you_mean, near_names, shorten, spoken_list

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Field:
    name: str  # What it is called once read.
    # "name" is a text or a whole number, "label" a text or any number, both read as text; "number"
    # lies in `bounds`; "record" and "records" are objects of the schema `of`; "any" is taken as it
    # comes.
    kind: Literal["text", "name", "label", "number", "record", "records", "any"] = "text"
    required: bool = False
    keys: tuple[str, ...] = ()  # What it is called in a file, the likeliest first; `name` if empty.
    lacking: str = ""  # What it means where a required field is missing.
    way_out: str = "give it a text or remove the record"
    bounds: tuple[float, float] = (0.0, 1.0)
    limit: int = MAX_CHARACTERS
    strip: bool = True  # Whether white space around a text goes.
    of: Schema | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.keys or (self.name,)

    def key_in(self, fields: Mapping[str, object]) -> str:
        """Return which of the field's names a record has; the likeliest if none."""
        return next((key for key in self.names if fields.get(key) is not None), self.names[0])

    def read(self, fields: Mapping[str, Any], place: str) -> Any:
        """Return what a record says here, None if nothing; refuse what it may not be."""
        key = self.key_in(fields)
        value = self._read(key, fields.get(key), place)
        if value is None and self.required:
            state = "blank" if key in fields and isinstance(fields[key], str) else "missing"
            near = "" if key in fields else near_field(key, fields)
            lacking = f", {self.lacking}" if self.lacking else ""
            raise DataError(f"{place}: the field '{key}' is {state}{near}{lacking}; {self.way_out}")
        return value

    def _read(self, key: str, value: Any, place: str) -> Any:
        if value is None or self.kind == "any":
            return value
        if self.kind == "number":
            return self._number(key, value, place)
        if self.kind in ("record", "records"):
            return self._inner(key, value, place)
        numbers = {"name": (int,), "label": (int, float)}.get(self.kind, ())
        if isinstance(value, numbers) and not isinstance(value, bool):
            return f"{value:g}" if isinstance(value, float) else str(value)
        if not isinstance(value, str):
            raise DataError(
                f"{place}: the field '{key}' is {shorten(value)}, not text; put it in quotes"
            )
        check_text(value, f"the field '{key}'", place, self.limit)
        if is_blank(value):
            return None
        return value.strip() if self.strip else value

    def _inner(self, key: str, value: Any, place: str) -> Any:
        assert self.of is not None
        many = self.kind == "records"
        if not isinstance(value, list if many else Mapping):
            names = ", ".join(f'"{field.name}": "..."' for field in self.of.fields)
            shape = f"[{{{names}}}, ...]" if many else f"{{{names}}}"
            raise DataError(f"{place}: the field '{key}' is {shorten(value)}; write it as {shape}")
        if not many:
            return self.of.read(Record(f"{place}: {key}", value))
        places = (f"{place}: {key} {number}" for number in range(1, len(value) + 1))
        return collect(map(Record, places, value), self.of.read)

    def _number(self, key: str, value: Any, place: str) -> float:
        low, high = self.bounds
        try:
            number = float(value) if isinstance(value, int | float | str) else float("nan")
        except (ValueError, OverflowError):
            number = float("nan")
        if isinstance(value, bool) or not low <= number <= high:
            raise DataError(
                f"{place}: the field '{key}' is {shorten(value)}; give a number from {low:g} to "
                f"{high:g}"
            )
        return number


@dataclass(frozen=True, slots=True)
class Schema:
    fields: tuple[Field, ...]
    open: bool = False  # Whether a record may have other fields as well.
    hint: str = ""  # The way out for a record, or a table, without any of the required fields.

    def read(self, record: Record) -> dict[str, Any]:
        """Return a record's fields by the schema's names; errors name file, line and field."""
        given = record.fields()
        self._check_known(list(map(str, given)), record.place)
        return {field.name: field.read(given, record.place) for field in self.fields}

    def read_file(
        self, file: RecordFile, parse: Callable[[dict[str, Any], str], Result]
    ) -> list[Result]:
        """Return what `parse` makes of every record's fields and place.

        An error tells of the first bad column or record, and how many more there are.
        """
        if file.header is not None:
            self._check_header(file.header, f"{file.path}:1")
        return collect(file.records, lambda record: parse(self.read(record), record.place))

    def _check_known(self, given: Sequence[str], place: str, hint: str = "") -> None:
        known = [name for field in self.fields for name in field.names]
        unknown = next((field for field in given if field not in known), None)
        if self.open or unknown is None:
            return
        if not unknown.strip():
            raise DataError(
                f"{place}: a column has no name; remove it (pandas writes one unless "
                "index=False is given)"
            )
        needed = {name for field in self.fields if field.required for name in field.names}
        hint = hint or ("" if needed & set(given) else self.hint)
        raise DataError(
            f"{place}: unknown field {shorten(unknown)}{did_you_mean(unknown, known)}; "
            f"the fields are {spoken_list(known)}{hint}"
        )

    def _check_header(self, header: tuple[str, ...], place: str) -> None:
        one = "; separate the columns by commas" if len(header) == 1 else ""
        self._check_known(header, place, one)
        for field in self.fields:
            if field.required and not set(field.names) & set(header):
                key, lacking = field.names[0], f", {field.lacking}" if field.lacking else ""
                raise DataError(
                    f"{place}: there is no column '{key}'{near_field(key, header)}{lacking}; add "
                    f"it{self.hint}"
                )


def near_field(key: str, fields: Iterable[object]) -> str:
    """Return a hint in brackets when there is a field whose name is close to a missing one."""
    close = near_names(key, map(str, fields), cutoff=0.7)
    return f" (the record has '{close[0]}')" if close else ""
