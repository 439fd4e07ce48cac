"""Reading contrastive pairs: from the user's files, from bundled sets, from Python tuples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from saesteer.data.bundled import bundled_pair_names, bundled_pairs_file
from saesteer.data.checks import (
    check_known_fields,
    collect,
    did_you_mean,
    optional_text,
    plain_form,
    required_text,
    shorten,
    spoken_list,
)
from saesteer.data.evals import (
    is_choice_record,
    is_persona_record,
    pair_statements,
    parse_choice,
    parse_statement,
)
from saesteer.data.pairs import ContrastivePair, PairSet
from saesteer.data.records import SYNTAXES, Record, RecordFile, check_is_file, read_records
from saesteer.utils.errors import ConfigError, DataError

FIELDS = ("positive", "negative", "prompt", "id", "positive_span", "negative_span")
FORMATS = ("auto", *SYNTAXES, "persona", "caa")
_LABEL = re.compile(r"^\([A-Z]\)[:.]?\s+")


@dataclass(frozen=True, slots=True)
class _Draft:
    """A pair whose id has not been checked against the others yet."""

    place: str
    id: str | None
    positive: str
    negative: str
    prompt: str | None
    positive_span: str | None = None
    negative_span: str | None = None


def load_pairs(
    source: str | Path,
    *,
    name: str | None = None,
    format: str = "auto",
    positive_key: str = "positive",
    negative_key: str = "negative",
    min_label_confidence: float = 0.0,
    max_pairs: int | None = None,
    seed: int = 0,
) -> PairSet:
    """Read contrastive pairs and check every one of them.

    Args:
        source: Path of a JSON file (a list of records, or `{"pairs": [...]}`), a JSONL file or a
            CSV file with a header; or the name of a bundled set, such as "agreeableness". Write
            `./agreeableness` for a file of your own that is called like a bundled set.
        name: Name of the set; by default the file's name without its suffix.
        format: "auto"; "json", "jsonl" or "csv" for files with the fields positive, negative,
            prompt and id; "persona" for model-written-evals persona files, which are paired by
            length; "caa" for A/B files as in Contrastive Activation Addition.
        positive_key: Field of the positive side in files that name their sides otherwise. With
            it, answer labels such as "(A)" are taken off, a field "question" serves as prompt,
            and other fields are ignored.
        negative_key: Field of the negative side, as `positive_key`.
        min_label_confidence: Persona files: leave out statements below it (0 to 1).
        max_pairs: Keep a seeded random choice of at most this many pairs, in their order.
        seed: Seed of that choice and of ties in the pairing of persona statements.

    Returns:
        The pairs, with the number of statements or pairs left out in `dropped`.

    Raises:
        DataError: The source cannot be used; the sentence names file and line.
        ConfigError: An argument is out of range.
    """
    _check_arguments(format, positive_key, negative_key, min_label_confidence, max_pairs)
    path, label = _find(source)
    file = read_records(path, format if format in SYNTAXES else None)
    name = name or path.stem
    keyed = (positive_key, negative_key) != ("positive", "negative")
    layout = "keyed" if keyed else _layout(file.records, format)
    if layout == "persona":
        statements = collect(file.records, partial(parse_statement, floor=min_label_confidence))
        pairs = pair_statements(statements, name=name, source=label, place=str(path), seed=seed)
    else:
        if min_label_confidence > 0:
            raise ConfigError(
                f"min_label_confidence is {min_label_confidence} but {path} is no persona file "
                "with label confidences; leave the setting out"
            )
        drafts = _drafts(file, layout, positive_key, negative_key)
        pairs = PairSet(name=name, pairs=_with_ids(drafts, name), source=label)
    return _at_most(pairs, max_pairs, seed)


# Its name in earlier versions.
read_pairs = load_pairs


def pairs_from(
    records: Iterable[Sequence[str] | Mapping[str, object] | ContrastivePair],
    name: str = "pairs",
) -> PairSet:
    """Make a set of pairs from Python values, checked as a file would be.

    Args:
        records: `(positive, negative)` tuples, mappings with the fields positive, negative, prompt
            and id, or pairs.
        name: Name of the set.

    Returns:
        The pairs, with source "python".

    Raises:
        DataError: A record cannot be used; the sentence says which one.
    """
    items = [
        _python_record(f"{name}: record {number}", value)
        for number, value in enumerate(records, start=1)
    ]
    if not items:
        raise DataError(f"{name}: there are no pairs; give at least one (positive, negative) tuple")
    return PairSet(name=name, pairs=_with_ids(collect(items, _plain_draft), name), source="python")


def _check_arguments(
    format: str, positive_key: str, negative_key: str, confidence: float, max_pairs: int | None
) -> None:
    if format not in FORMATS:
        raise ConfigError(
            f"format is {shorten(format)}{did_you_mean(str(format), FORMATS)}; "
            f"choose one of {spoken_list(FORMATS)}"
        )
    if positive_key == negative_key:
        raise ConfigError(
            f"positive_key and negative_key are both '{positive_key}'; name two different fields"
        )
    if not 0 <= confidence <= 1:
        raise ConfigError(f"min_label_confidence is {confidence}; give a number from 0 to 1")
    if max_pairs is not None and max_pairs < 1:
        raise ConfigError(f"max_pairs is {max_pairs}; give at least 1, or leave it out")


def _find(source: str | Path) -> tuple[Path, str]:
    """Tell a bundled name from a path; returns the file and what to call the source."""
    if not isinstance(source, str | Path):
        raise DataError(
            f"the source of the pairs is {shorten(source)}, not a path or name; "
            "make pairs of Python values with pairs_from"
        )
    path = Path(source)
    is_name = isinstance(source, str) and path.name == source and not path.suffix
    if is_name and len(path.name) <= 100:
        names = bundled_pair_names()
        if source in names:
            return bundled_pairs_file(str(source)), f"bundled:{source}"
        if not path.exists():
            known = f"the bundled sets are {spoken_list(names)}" if names else "none is bundled"
            raise DataError(
                f"there is no file and no bundled set called {shorten(source)}"
                f"{did_you_mean(str(source), names)}; {known}"
            )
    check_is_file(path)
    return path, str(path)


def _layout(records: list[Record], format: str) -> str:
    if format in ("persona", "caa"):
        return format
    if format != "auto":
        return "plain"
    # The first readable record decides: a single broken line must not change what the file is.
    for record in records:
        if record.problem is None and isinstance(record.value, Mapping):
            if is_persona_record(record.value):
                return "persona"
            return "caa" if is_choice_record(record.value) else "plain"
    return "plain"


def _drafts(file: RecordFile, layout: str, positive_key: str, negative_key: str) -> list[_Draft]:
    if layout == "caa":
        return collect(file.records, _choice_draft)
    if layout == "keyed":
        return collect(
            file.records,
            partial(_keyed_draft, positive_key=positive_key, negative_key=negative_key),
        )
    if file.header is not None:
        place = f"{file.path}:1"
        hint = "; separate the columns by commas" if len(file.header) == 1 else ""
        check_known_fields(file.header, FIELDS, place, hint)
        for side in FIELDS[:2]:
            if side not in file.header:
                raise DataError(f"{place}: there is no column '{side}', so no pair; add it")
    return collect(file.records, _plain_draft)


def _plain_draft(record: Record) -> _Draft:
    fields = record.fields()
    no_side = not {"positive", "negative"} & set(fields)
    hint = "; or name your own two sides with positive_key and negative_key" if no_side else ""
    check_known_fields([str(field) for field in fields], FIELDS, record.place, hint)
    return _draft(
        record.place,
        _id(fields, record.place),
        _side(fields, "positive", record.place),
        _side(fields, "negative", record.place),
        optional_text(fields, "prompt", record.place),
        _span(fields, "positive", record.place),
        _span(fields, "negative", record.place),
    )


def _keyed_draft(record: Record, *, positive_key: str, negative_key: str) -> _Draft:
    fields = record.fields()
    prompt_key = "prompt" if fields.get("prompt") is not None else "question"
    return _draft(
        record.place,
        _id(fields, record.place),
        _LABEL.sub("", _side(fields, positive_key, record.place)),
        _LABEL.sub("", _side(fields, negative_key, record.place)),
        optional_text(fields, prompt_key, record.place),
    )


def _choice_draft(record: Record) -> _Draft:
    choice = parse_choice(record)
    return _draft(record.place, None, choice.positive, choice.negative, choice.prompt)


def _side(fields: Mapping[str, object], key: str, place: str) -> str:
    return required_text(fields, key, place, "so the pair has one side only")


def _id(fields: Mapping[str, object], place: str) -> str | None:
    value = fields.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return optional_text(fields, "id", place)


def _span(fields: Mapping[str, object], side: str, place: str) -> str | None:
    span = optional_text(fields, f"{side}_span", place)
    if span is not None and span not in str(fields[side]):
        raise DataError(
            f"{place}: {side}_span {shorten(span)} does not stand in the {side} text; give a part "
            "of it, letter by letter"
        )
    return span


def _draft(
    place: str,
    id: str | None,
    positive: str,
    negative: str,
    prompt: str | None,
    positive_span: str | None = None,
    negative_span: str | None = None,
) -> _Draft:
    if plain_form(positive) == plain_form(negative):
        forms = "" if positive.split() == negative.split() else " in two Unicode forms"
        raise DataError(
            f"{place}: both sides are {shorten(positive)}{forms}; give the negative side another "
            "text or remove the record"
        )
    return _Draft(place, id, positive, negative, prompt, positive_span, negative_span)


def _with_ids(drafts: Sequence[_Draft], name: str) -> tuple[ContrastivePair, ...]:
    """Check that given ids are unique, and number the pairs that have none."""
    first_place: dict[str, str] = {}

    def note(draft: _Draft) -> None:
        if draft.id is None:
            return
        earlier = first_place.setdefault(draft.id, draft.place)
        if earlier != draft.place:
            raise DataError(
                f"{draft.place}: the id {shorten(draft.id)} is taken by {earlier}; "
                "give every pair its own id, or none"
            )

    collect(drafts, note)
    pairs: list[ContrastivePair] = []
    for number, draft in enumerate(drafts, start=1):
        id = draft.id or f"{name}-{number:04d}"
        while draft.id is None and id in first_place:
            id += "a"
        pairs.append(
            ContrastivePair(
                id,
                draft.positive,
                draft.negative,
                draft.prompt,
                draft.positive_span,
                draft.negative_span,
            )
        )
    return tuple(pairs)


def _python_record(place: str, value: object) -> Record:
    if isinstance(value, ContrastivePair):
        return Record(place, {field: getattr(value, field) for field in FIELDS})
    if isinstance(value, Mapping):
        return Record(place, value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return Record(place, {"positive": value[0], "negative": value[1]})
    return Record(
        place, problem=f"{shorten(value)} is no pair; give a tuple (positive text, negative text)"
    )


def _at_most(pairs: PairSet, max_pairs: int | None, seed: int) -> PairSet:
    if max_pairs is None or len(pairs) <= max_pairs:
        return pairs
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:max_pairs])
    left_out = pairs.dropped + len(pairs) - max_pairs
    return replace(pairs.subset(chosen.tolist()), dropped=left_out)
