"""Labelled texts: plain records, human valence ratings, tweets; read and checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from saesteer.data.bundled import find_file
from saesteer.data.checks import collect, ids_of, is_blank
from saesteer.data.records import Record, RecordFile, read_records
from saesteer.data.schema import Field, Schema
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.text import did_you_mean, shorten, spoken_list

if TYPE_CHECKING:
    import pandas as pd

BUNDLED_SETS = ("sentiment", "sentiment_checks", "sentiment_prompts")
# From bad to good, so that the first class is the negative end of a direction.
_SENTIMENT = ("negative", "neutral", "positive")
_KEYS_HINT = ", or name yours with data.text_key and data.label_key"


def _text(key: str) -> Field:
    way_out = "give it a text, remove the record or set data.skip_blank: true"
    return Field("text", keys=(key,), required=True, way_out=way_out)


def _labelled(text_key: str = "text", label_key: str = "label", group_key: str = "group") -> Schema:
    return Schema(
        (
            _text(text_key),
            Field(
                "label",
                kind="label",
                keys=(label_key,),
                required=True,
                lacking="so the text has no class",
            ),
            Field("id", kind="name"),
            Field("group", kind="name", keys=(group_key,)),
            Field("span"),
        ),
        open=True,
        hint=_KEYS_HINT,
    )


# What the label is made of stands second.
LAYOUTS = {
    "labelled": _labelled(),
    "valence": Schema(
        (
            _text("text"),
            Field("label", kind="number", keys=("mean_valence",), required=True, bounds=(-4, 4)),
            Field("id", kind="name"),
        ),
        open=True,
    ),
    "tweets": Schema(
        (
            _text("text"),
            Field("label", keys=("sentiment",), required=True, lacking="so the text has no class"),
            Field("id", kind="name", keys=("textID", "id")),
            Field("span", keys=("selected_text",)),
        ),
        open=True,
    ),
}


@dataclass(frozen=True, slots=True)
class LabelledText:
    id: str  # Unique within its set.
    text: str
    label: str
    group: str  # Texts of one group, such as one review's sentences, never straddle a split.
    # The part of the text that the label is about, letter by letter; None for all of it.
    span: str | None = None
    place: str = ""  # `file:line` where it stands.


@dataclass(frozen=True)
class LabelledSet:
    """Labelled texts in the order of their file."""

    name: str
    texts: tuple[LabelledText, ...]
    classes: tuple[str, ...]  # In the order in which probes number them.
    source: str
    dropped: int = 0  # How many records were left out on request.

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> Int[np.ndarray, " text"]:
        """Each text's class as its number in `classes`."""
        number = {name: index for index, name in enumerate(self.classes)}
        return np.array([number[text.label] for text in self.texts], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256 of what was read: texts, labels, groups and spans."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for text in self.texts:
            record = [text.id, text.text, text.label, text.group, text.span]
            digest.update(json.dumps(record, ensure_ascii=False).encode("utf-8"))
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> LabelledSet:
        return replace(self, texts=tuple(self.texts[i] for i in indices))

    @property
    def table(self) -> pd.DataFrame:
        """One row for each text, by id: text, label, group and, where given, span."""
        import pandas as pd

        span = ["span"] if any(text.span is not None for text in self.texts) else []
        rows = [asdict(text) for text in self.texts]
        return pd.DataFrame(rows, columns=["id", "text", "label", "group", *span]).set_index("id")

    def _repr_html_(self) -> str:
        title = escape(f"{self.name}: {len(self)} texts of {spoken_list(self.classes)}")
        return f"<p>{title}</p>{self.table.to_html(max_rows=10)}"


def load_texts(
    source: str | Path,
    *,
    name: str | None = None,
    format: str = "auto",
    text_key: str = "text",
    label_key: str = "label",
    group_key: str | None = None,
    classes: Sequence[str] | None = None,
    drop_other: bool = False,
    skip_blank: bool = False,
    threshold: float = 0.5,
) -> LabelledSet:
    """Read labelled texts and check every one of them.

    Args:
        source: A JSON, JSONL, CSV or Parquet file; a folder of CSV files; or the name of a bundled
            set: "sentiment", "sentiment_checks", "sentiment_prompts".
        name: Name of the set; the file's or folder's name if None.
        format: "labelled" (a text, a label, and optional id, group and span), "valence" (id,
            mean_valence, text: human ratings from -4 to 4), "tweets" (text, selected_text,
            sentiment; the span is selected_text; UTF-8 or Latin-1); "auto" tells by the fields.
        text_key: Field of the text in a labelled file.
        label_key: Field of the label in a labelled file; numbers count as their digits.
        group_key: Field of the group in a labelled file; "group" where it is there if None.
        classes: The classes, in order; any other label is an error that names its record. If
            None, all labels in the file: negative, neutral, positive in this order, others by
            the alphabet.
        drop_other: Leave records of other labels out instead.
        skip_blank: Leave records without a text or label out instead of refusing them.
        threshold: Valence at or above it is positive, at or below minus it negative, else neutral.

    Raises:
        DataError: The source cannot be used; the sentence names file, line and field.
        ConfigError: An argument is out of range.
    """
    _check_arguments(format, classes, threshold)
    own = _labelled(text_key, label_key, group_key or "group")
    schemas = {**LAYOUTS, "labelled": own}
    files, label = _files(source)
    found: list[LabelledText] = []
    skipped = 0
    for path in files:
        file = read_records(path, fallback="latin-1")
        layout = _layout(file, text_key, label_key) if format == "auto" else format
        schema = schemas[layout]
        if group_key is not None and layout == "labelled":
            collect(file.records, lambda record: _check_group(record, group_key))
        if skip_blank:
            kept = [record for record in file.records if not _lacks_words(record, schema)]
            skipped += len(file.records) - len(kept)
            file = replace(file, records=kept)
        prefix = f"{path.stem}:" if len(files) > 1 else ""
        found += schema.read_file(
            file,
            lambda said, place, layout=layout, prefix=prefix: _labelled_text(
                said, place, layout, prefix, threshold
            ),
        )
    known = _classes(found, classes)
    kept = [text for text in found if text.label in known]
    if len(kept) < len(found) and not drop_other:
        collect(found, lambda text: _check_class(text, known))
    if not kept:
        raise DataError(
            f"{label}: no record is left with a label of the classes; check data.classes."
        )
    left = skipped + len(found) - len(kept)
    return LabelledSet(name or Path(label).stem, _with_ids(kept), tuple(known), label, left)


# Its name in earlier versions.
read_labelled = load_texts


def check_trainable(texts: LabelledSet, least: int = 2) -> None:
    """Refuse texts that no probe can be trained on: of one class, or fewer than `least` of one."""
    if len(texts.classes) < 2:
        raise DataError(
            f"{texts.source}: all {len(texts)} texts have the label {texts.texts[0].label!r}, and "
            "a probe needs two classes or more; add texts of another class."
        )
    counts = np.bincount(texts.labels, minlength=len(texts.classes))
    few = int(counts.argmin())
    if counts[few] < least:
        raise DataError(
            f"{texts.source}: class {texts.classes[few]!r} has {counts[few]} texts and needs at "
            f"least {least}; add some, or leave the class out of data.classes."
        )


def _check_arguments(format: str, classes: Sequence[str] | None, threshold: float) -> None:
    if format not in ("auto", *LAYOUTS):
        raise ConfigError(
            f"format is {shorten(format)}{did_you_mean(str(format), LAYOUTS)}; choose one of "
            f"{spoken_list(('auto', *LAYOUTS))}"
        )
    if not 0 < threshold <= 4:
        raise ConfigError(f"threshold is {threshold}; give a valence above 0 and up to 4")
    if classes is None:
        return
    if len(classes) < 2:
        raise ConfigError(f"classes {list(classes)} are fewer than two; name at least two")
    if len(set(classes)) < len(classes):
        raise ConfigError(f"classes {list(classes)} name one twice; name each once")


def _files(source: str | Path) -> tuple[list[Path], str]:
    path = Path(source)
    if os.path.isdir(path):
        files = sorted(path.glob("*.csv"))
        if not files:
            raise DataError(f"{path}: the folder holds no .csv file; give a folder with some")
        return files, str(path)
    # What lies here comes before what is bundled.
    file, label = find_file(
        path if source in BUNDLED_SETS and path.exists() else source, BUNDLED_SETS
    )
    return [file], label


def _layout(file: RecordFile, text_key: str, label_key: str) -> str:
    first = next((r.value for r in file.records if isinstance(r.value, Mapping)), {})
    fields = set(file.header or first)
    # Fields that the caller named win over a layout that the file happens to have as well.
    if {text_key, label_key} <= fields:
        return "labelled"
    if {"mean_valence", "text"} <= fields:
        return "valence"
    return "tweets" if {"text", "sentiment"} <= fields else "labelled"


def _check_group(record: Record, key: str) -> None:
    if key not in record.fields():
        raise DataError(
            f"{record.place}: there is no field {key!r} for the group; add it or leave "
            "data.group_key out"
        )


def _lacks_words(record: Record, schema: Schema) -> bool:
    """Return whether a record that can be read has no text or no label."""
    if record.problem is not None or not isinstance(record.value, Mapping):
        return False
    given = [record.value.get(field.key_in(record.value)) for field in schema.fields[:2]]
    return any(value is None or (isinstance(value, str) and is_blank(value)) for value in given)


def _labelled_text(
    said: dict[str, Any], place: str, layout: str, prefix: str, threshold: float
) -> LabelledText:
    """Return a text; it has no id or group yet where the record gives none."""
    id, group, span, label = said["id"], said.get("group"), said.get("span"), said["label"]
    if layout == "valence":
        side = "positive" if label > 0 else "negative"
        label = side if abs(label) >= threshold else "neutral"
        # Ids such as 12_3 are the third sentence of text 12.
        group = None if id is None else id.rpartition("_")[0] or id
    elif layout == "tweets":
        label = label.lower()
    if span is not None and span not in said["text"]:
        raise DataError(
            f"{place}: the field 'span' is {shorten(span)}, which does not stand in the text; give "
            "a part of it, letter by letter"
        )
    id, group = (None if name is None else f"{prefix}{name}" for name in (id, group))
    return LabelledText(id or "", said["text"], label, group or "", span, place)


def _classes(texts: Sequence[LabelledText], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        return tuple(classes)
    found = {text.label for text in texts}
    known = [name for name in _SENTIMENT if name in found]
    return (*known, *sorted(found - set(known)))


def _check_class(text: LabelledText, classes: Sequence[str]) -> None:
    if text.label not in classes:
        raise DataError(
            f"{text.place}: label {shorten(text.label)}{did_you_mean(text.label, classes)} is "
            f"not among the classes {spoken_list(classes)}; correct it, add it to data.classes or "
            "set data.drop_other: true"
        )


def _with_ids(texts: Sequence[LabelledText]) -> tuple[LabelledText, ...]:
    given = [(text.place, text.id) for text in texts]
    ids = ids_of(given, lambda n: f"text-{n:05d}", "give each text one of its own")
    named = zip(texts, ids, strict=True)
    return tuple(replace(text, id=id, group=text.group or id) for text, id in named)
