"""Labelled texts: reading and checking them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from saesteer.data.bundled import datasets_folder
from saesteer.data.checks import collect, did_you_mean, shorten, spoken_list
from saesteer.data.labelled_layouts import LAYOUTS, Draft, LayoutOptions, drafts_of
from saesteer.data.records import check_is_file
from saesteer.utils.errors import ConfigError, DataError

BUNDLED_SETS = ("sentiment", "sentiment_checks", "sentiment_prompts")
# From bad to good, so that the first class is the negative end of a direction.
_SENTIMENT = ("negative", "neutral", "positive")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text with its class.

    Attributes:
        id: Unique name within its set.
        text: The text.
        label: Its class.
        group: Texts of one group, such as one review's sentences, never straddle a split.
        span: The part of the text that the label is about, letter by letter; None for all of it.
        place: `file:line` where it stands.
    """

    id: str
    text: str
    label: str
    group: str
    span: str | None = None
    place: str = ""


@dataclass(frozen=True)
class LabelledSet:
    """Labelled texts in the order of their file.

    Attributes:
        name: Name of the set.
        texts: The texts.
        classes: The classes, in the order in which probes number them.
        source: Where they came from.
        dropped: How many records were left out on request.
    """

    name: str
    texts: tuple[LabelledText, ...]
    classes: tuple[str, ...]
    source: str
    dropped: int = 0

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
        """Return the texts at these places, in this order."""
        return replace(self, texts=tuple(self.texts[i] for i in indices))


def read_labelled(
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
        source: A JSON, JSONL or CSV file; a folder of valence CSV files; or the name of a bundled
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

    Returns:
        The texts.

    Raises:
        DataError: The source cannot be used; the sentence names file and line.
        ConfigError: An argument is out of range.
    """
    _check_arguments(format, classes, threshold)
    options = LayoutOptions(format, text_key, label_key, group_key, threshold, skip_blank)
    files, label = _files(source)
    drafts: list[Draft] = []
    skipped = 0
    for file in files:
        found, left_out = drafts_of(file, options, several=len(files) > 1)
        drafts += found
        skipped += left_out
    known = _classes(drafts, classes)
    kept = [draft for draft in drafts if draft.label in known]
    if len(kept) < len(drafts) and not drop_other:
        collect(drafts, lambda draft: _check_class(draft, known))
    if not kept:
        raise DataError(
            f"{label}: no record is left with a label of the classes; check data.classes."
        )
    texts = _with_ids(kept)
    left = skipped + len(drafts) - len(kept)
    return LabelledSet(name or Path(label).stem, texts, tuple(known), label, left)


def check_trainable(texts: LabelledSet, least: int = 2) -> None:
    """Refuse texts that no probe can be trained on.

    Args:
        texts: The texts.
        least: The fewest texts of a class.

    Raises:
        DataError: There is one class only, or one with too few texts.
    """
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
    if source in BUNDLED_SETS and not path.exists():
        return [datasets_folder() / f"{source}.csv"], f"bundled:{source}"
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise DataError(f"{path}: the folder holds no .csv file; give a folder with some")
        return files, str(path)
    if not path.exists() and isinstance(source, str) and not path.suffix and path.name == source:
        raise DataError(
            f"there is no file and no bundled set called {shorten(source)}"
            f"{did_you_mean(source, BUNDLED_SETS)}; the bundled sets are "
            f"{spoken_list(BUNDLED_SETS)}"
        )
    check_is_file(path)
    return [path], str(path)


def _classes(drafts: Sequence[Draft], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        return tuple(classes)
    found = {draft.label for draft in drafts}
    known = [name for name in _SENTIMENT if name in found]
    return (*known, *sorted(found - set(known)))


def _check_class(draft: Draft, classes: Sequence[str]) -> None:
    if draft.label not in classes:
        raise DataError(
            f"{draft.place}: label {shorten(draft.label)}{did_you_mean(draft.label, classes)} is "
            f"not among the classes {spoken_list(classes)}; correct it, add it to data.classes or "
            "set data.drop_other: true"
        )


def _with_ids(drafts: Sequence[Draft]) -> tuple[LabelledText, ...]:
    taken: dict[str, str] = {}

    def give(item: tuple[int, Draft]) -> LabelledText:
        number, draft = item
        name = draft.id or f"text-{number:05d}"
        earlier = taken.setdefault(name, draft.place)
        if earlier != draft.place:
            raise DataError(
                f"{draft.place}: the id {shorten(name)} stands at {earlier} already; give each "
                "text one of its own"
            )
        return LabelledText(
            name, draft.text, draft.label, draft.group or name, draft.span, draft.place
        )

    return tuple(collect(list(enumerate(drafts, start=1)), give))
