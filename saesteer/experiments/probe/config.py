"""A probe run's settings (`configs/probes/*.yaml`), checked before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from saesteer.data.labelled import LabelledSet, check_trainable, read_labelled
from saesteer.data.splits import LabelledSplit, split_labelled
from saesteer.experiments.config import (
    ExperimentConfig,
    Plan,
    check_writable,
    run_folder,
    sources,
    weights_digest,
)
from saesteer.probes.fitting import FitSettings
from saesteer.probes.reading import INDEX, ReadSettings, check_spans
from saesteer.probes.sparse import SparseSettings
from saesteer.utils.errors import ConfigError
from saesteer.utils.files import portable_name
from saesteer.utils.settings import Settings, Source, short_hash


class TextSettings(Settings):
    """The labelled texts; see `read_labelled` and `split_labelled`."""

    source: Source = "sentiment"
    format: Literal["auto", "labelled", "valence", "tweets"] = "auto"
    text_key: str = "text"
    label_key: str = "label"
    group_key: str | None = None
    classes: list[str] | None = Field(default=None, min_length=2)
    drop_other: bool = False
    skip_blank: bool = False
    threshold: float = Field(default=0.5, gt=0, le=4)
    # Keep a seeded random choice of at most this many texts.
    max_texts: int | None = Field(default=None, ge=10)
    # Texts that probes are scored on, and those set aside for the independent classifier: a share
    # below 1, or a count.
    test: int | float = Field(default=0.2, gt=0)
    judge: int | float = Field(default=0.15, ge=0)
    # Texts this alike stay in one part; null to go by declared groups alone.
    near_duplicate: float | None = Field(default=0.5, gt=0, le=1)


class ProbeConfig(ExperimentConfig):
    """Everything a probe run depends on; activations are kept in the folder's `activations`."""

    kind: ClassVar[str] = "probe-train"

    data: TextSettings = TextSettings()
    reading: ReadSettings = ReadSettings()
    fit: FitSettings = FitSettings()
    sparse: SparseSettings = SparseSettings()
    # A labelled set of plain cases that every layer is scored on; none if null.
    checks: Source | None = None
    # Seeds the split, the folds, the shuffled labels and the resamples.
    seed: int = Field(default=0, ge=0, lt=2**32)

    def reading_digest(self, **inputs: str) -> str:
        """A short hash of what the activations alone depend on."""
        model = self.model.model_dump(mode="json", exclude={"threads"})
        return short_hash([model, self.reading.model_dump(mode="json"), inputs])


@dataclass(frozen=True, kw_only=True)
class ProbePlan(Plan):
    """A checked probe run."""

    # All texts that are read; those of the classes that probes are fitted on; and their places.
    texts: LabelledSet
    used: LabelledSet
    places: Int[np.ndarray, " used"]
    # Parts of `used`.
    split: LabelledSplit
    checks: LabelledSet | None
    # Where activations of the texts and of the plain cases go, shared by runs that read alike.
    store: Path
    checks_store: Path

    @property
    def is_read(self) -> bool:
        """Whether an earlier run has read the texts."""
        return (self.store / INDEX).is_file()


def plan_probes(config: ProbeConfig) -> ProbePlan:
    """Read the texts and check every setting; nothing is loaded or written."""
    texts = _texts(config)
    used, places = _used(texts, config.fit.classes)
    check_trainable(used, least=config.fit.folds + 2)
    if config.reading.positions == "span":
        check_spans(texts.texts)
    split = split_labelled(
        used,
        test=config.data.test,
        judge=config.data.judge,
        seed=config.seed,
        near_duplicate=config.data.near_duplicate,
    )
    checks = None if config.checks is None else _checks(config.checks, used)
    shown = "" if checks is None else checks.digest
    model, sae = sources(config, config.reading.sae)
    weights = weights_digest(model, sae)
    kept = Path(config.folder) / "activations"
    store, checks_store = (
        kept / f"{portable_name(name)}-{config.reading_digest(texts=of, **weights)}"
        for name, of in ((texts.name, texts.digest), ("checks", shown))
    )
    folder = run_folder(config, texts=texts.digest, checks=shown, **weights)
    check_writable(kept)
    return ProbePlan(
        config=config,
        model=model,
        sae=sae,
        folder=folder,
        texts=texts,
        used=used,
        places=places,
        split=split,
        checks=checks,
        store=store,
        checks_store=checks_store,
    )


def _texts(config: ProbeConfig) -> LabelledSet:
    data, drawn = config.data, {"max_texts", "test", "judge", "near_duplicate"}
    texts = read_labelled(**data.model_dump(exclude=drawn))
    if data.max_texts is None or len(texts) <= data.max_texts:
        return texts
    chosen = np.random.default_rng(config.seed).choice(len(texts), data.max_texts, replace=False)
    return texts.subset(sorted(chosen.tolist()))


def _used(
    texts: LabelledSet, classes: list[str] | None
) -> tuple[LabelledSet, Int[np.ndarray, " used"]]:
    if classes is None:
        return texts, np.arange(len(texts))
    unknown = [name for name in classes if name not in texts.classes]
    if unknown:
        raise ConfigError(
            f"fit.classes names {unknown[0]!r} and the texts' classes are "
            f"{', '.join(texts.classes)}; choose among them."
        )
    places = np.flatnonzero([text.label in classes for text in texts.texts])
    return replace(texts.subset(places.tolist()), classes=tuple(classes)), places


def _checks(source: str, used: LabelledSet) -> LabelledSet:
    checks = read_labelled(source)
    known = [i for i, text in enumerate(checks.texts) if text.label in used.classes]
    if not known:
        raise ConfigError(
            f"checks {source}: no text has a label of the classes {', '.join(used.classes)}; give "
            "a list with these labels, or leave checks out."
        )
    return replace(checks.subset(known), classes=used.classes)
