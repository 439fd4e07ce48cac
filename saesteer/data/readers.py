"""Reading contrastive pairs: from the user's files, from bundled sets, from Python tuples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saesteer.data.bundled import bundled_pair_names, find_file
from saesteer.data.checks import collect, ids_of, plain_form
from saesteer.data.evals import (
    CHOICE,
    MATCHING,
    PERSONA,
    pair_statements,
    parse_choice,
    parse_statement,
)
from saesteer.data.pairs import ContrastivePair, Description, PairSet
from saesteer.data.records import SYNTAXES, Record, RecordFile, read_records
from saesteer.data.schema import Field, Schema
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.text import did_you_mean, shorten, spoken_list

FORMATS = ("auto", *SYNTAXES, "persona", "caa")
_LABEL = re.compile(r"^\([A-Z]\)[:.]?\s+")


def _side(name: str, key: str) -> Field:
    return Field(name, keys=(key,), required=True, lacking="so the pair has one side only")


PAIR = Schema(
    (
        _side("positive", "positive"),
        _side("negative", "negative"),
        Field("prompt"),
        Field("id", kind="name"),
        Field("positive_span"),
        Field("negative_span"),
    ),
    hint="; or name your own two sides with positive_key and negative_key (of a command: "
    "pairs.positive_key=COLUMN pairs.negative_key=COLUMN)",
)


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

    Before the pairs of a JSON or JSONL file may stand what their sides are, `{"describe":
    {"positive": "a kind person", "negative": "a cruel person"}}`, in words that complete "You are".

    Args:
        source: Path of a JSON file (a list of records, or `{"pairs": [...]}`), or of a JSONL, CSV
            or Parquet file; or the name of a bundled set, such as "agreeableness". Write
            `./agreeableness` for a file of your own that is called like a bundled set.
        name: Name of the set; by default the file's name without its suffix.
        format: "auto"; "json", "jsonl", "csv" or "parquet" for files with the fields positive,
            negative, prompt, id, positive_span and negative_span; "persona" for
            model-written-evals persona files, which are paired by length; "caa" for A/B files as
            in Contrastive Activation Addition.
        positive_key: Field of the positive side in files that name their sides otherwise. With
            it, answer labels such as "(A)" are taken off, a field "question" serves as prompt,
            and other fields are ignored.
        negative_key: Field of the negative side, as `positive_key`.
        min_label_confidence: Persona files: leave out statements below it (0 to 1).
        max_pairs: Keep a seeded random choice of at most this many pairs, in their order.
        seed: Seed of that choice and of ties in the pairing of persona statements.

    Raises:
        DataError: The source cannot be used; the sentence names file, line and field.
        ConfigError: An argument is out of range.

    Example:
        >>> len(ss.load_pairs("agreeableness")) > 100
        True
    """
    _check_arguments(format, positive_key, negative_key, min_label_confidence, max_pairs)
    if not isinstance(source, str | Path):
        raise DataError(
            f"the source of the pairs is {shorten(source)}, not a path or name; "
            "make pairs of Python values with pairs_from"
        )
    path, label = find_file(source, bundled_pair_names(), "pairs")
    whole = read_records(path, format if format in SYNTAXES else None)
    file, described = _take_description(whole, positive_key, negative_key)
    name = name or path.stem
    keyed = (positive_key, negative_key) != ("positive", "negative")
    layout = "keyed" if keyed else _layout(file.records, format)
    if layout == "persona":
        statements = PERSONA.read_file(
            file, lambda said, place: parse_statement(said, place, floor=min_label_confidence)
        )
        pairs = pair_statements(statements, name=name, source=label, place=str(path), seed=seed)
        return _at_most(replace(pairs, describe=described), max_pairs, seed)
    if min_label_confidence > 0:
        raise ConfigError(
            f"min_label_confidence is {min_label_confidence} but {path} is no persona file "
            "with label confidences; leave the setting out"
        )
    if layout == "caa":
        placed = CHOICE.read_file(file, lambda said, place: _pair(parse_choice(said, place), place))
    elif keyed:
        schema = Schema(
            (
                _side("positive", positive_key),
                _side("negative", negative_key),
                Field("prompt", keys=("prompt", "question")),
                Field("id", kind="name"),
            ),
            open=True,
        )
        placed = schema.read_file(file, lambda said, place: _pair(_unlabelled(said), place))
    else:
        placed = PAIR.read_file(file, _pair)
    pairs = PairSet(name, _with_ids(placed, name), label, describe=described)
    return _at_most(pairs, max_pairs, seed)


def _take_description(
    file: RecordFile, positive_key: str, negative_key: str
) -> tuple[RecordFile, Description | None]:
    """Divide a file into its pairs and the record before them that says what their sides are."""
    first, *rest = file.records
    if not (isinstance(first.value, Mapping) and "describe" in first.value):
        return file, None
    if not rest:
        raise DataError(f"{first.place}: no pair follows what the sides are; give at least one")
    # Sides that are taken the other way round are described the other way round.
    keys = (("positive", positive_key), ("negative", negative_key))
    sides = tuple(Field(side, keys=(key, side), required=True) for side, key in keys)
    said = Schema((Field("describe", kind="record", of=Schema(sides)),)).read(first)["describe"]
    return replace(file, records=rest), Description(**said)


# Its name in earlier versions.
read_pairs = load_pairs


def pairs_from(
    records: Iterable[Sequence[str] | Mapping[str, object] | ContrastivePair],
    name: str = "pairs",
) -> PairSet:
    """Make a set of pairs from Python values, checked as a file would be; its source is "python".

    Args:
        records: `(positive, negative)` tuples, mappings with the fields positive, negative, prompt
            and id, or pairs.
        name: Name of the set.

    Raises:
        DataError: A record cannot be used; the sentence says which one.

    Example:
        >>> ss.pairs_from([("I like you", "I hate you")]).negatives
        ('I hate you',)
    """
    items = [
        _python_record(f"{name}: record {number}", value)
        for number, value in enumerate(records, start=1)
    ]
    if not items:
        raise DataError(f"{name}: there are no pairs; give at least one (positive, negative) tuple")
    placed = collect(items, lambda record: _pair(PAIR.read(record), record.place))
    return PairSet(name, _with_ids(placed, name), "python")


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


def _layout(records: list[Record], format: str) -> str:
    if format != "auto":
        return format
    # The first readable record decides: a single broken line must not change what the file is.
    readable = (r.value for r in records if r.problem is None and isinstance(r.value, Mapping))
    first = next(readable, {})
    if MATCHING not in first:
        return "plain"
    return "persona" if "statement" in first else "caa" if "question" in first else "plain"


def _unlabelled(said: dict[str, Any]) -> dict[str, Any]:
    return {**said, **{side: _LABEL.sub("", said[side]) for side in ("positive", "negative")}}


def _pair(said: Mapping[str, Any], place: str) -> tuple[str, ContrastivePair]:
    """Return a pair with its place; it has no id yet where the record gives none."""
    pair = ContrastivePair(**{**said, "id": said.get("id") or ""})
    for side in ("positive", "negative"):
        span = said.get(f"{side}_span")
        if span is not None and span not in said[side]:
            raise DataError(
                f"{place}: {side}_span {shorten(span)} does not stand in the {side} text; give a "
                "part of it, letter by letter"
            )
    if plain_form(pair.positive) == plain_form(pair.negative):
        forms = "" if pair.positive.split() == pair.negative.split() else " in two Unicode forms"
        raise DataError(
            f"{place}: both sides are {shorten(pair.positive)}{forms}; give the negative side "
            "another text or remove the record"
        )
    return place, pair


def _with_ids(
    placed: Sequence[tuple[str, ContrastivePair]], name: str
) -> tuple[ContrastivePair, ...]:
    given = [(place, pair.id) for place, pair in placed]
    ids = ids_of(given, lambda n: f"{name}-{n:04d}", "give every pair its own id, or none")
    return tuple(replace(pair, id=id) for (_, pair), id in zip(placed, ids, strict=True))


def _python_record(place: str, value: object) -> Record:
    if isinstance(value, ContrastivePair):
        return Record(place, {field.name: getattr(value, field.name) for field in PAIR.fields})
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
