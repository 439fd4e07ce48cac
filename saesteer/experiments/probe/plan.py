"""What a probe run will do, worked out and checked before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from saesteer.data.labelled import LabelledSet, check_trainable, read_labelled
from saesteer.data.labelled_splits import LabelledSplit, split_labelled
from saesteer.experiments.probe.config import ProbeConfig
from saesteer.experiments.steer.plan import check_writable, source_digest
from saesteer.models.resolve import ModelSource, resolve_model
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.files import portable_name


@dataclass(frozen=True)
class ProbePlan:
    """A checked probe run.

    Attributes:
        config: Its settings.
        texts: All texts that are read.
        used: Those of the classes that probes are fitted on.
        places: Where each used text stands in `texts`.
        split: Train, test and judge parts of `used`.
        checks: Plain cases, if there are any.
        model: Where the model comes from.
        folder: The run's folder; the same settings and texts give the same one.
        store: The file of the texts' activations, shared by runs that read alike.
        checks_store: The same for the plain cases.
    """

    config: ProbeConfig
    texts: LabelledSet
    used: LabelledSet
    places: Int[np.ndarray, " used"]
    split: LabelledSplit
    checks: LabelledSet | None
    model: ModelSource
    folder: Path
    store: Path
    checks_store: Path


def plan_probes(config: ProbeConfig) -> ProbePlan:
    """Read the texts and check every setting; nothing is loaded or written.

    Raises:
        SaesteerError: Something does not fit, said in one sentence.
    """
    texts = _texts(config)
    used, places = _used(texts, config.fit.classes)
    check_trainable(used, least=config.fit.folds + 2)
    if config.reading.positions == "span":
        _check_spans(texts)
    split = split_labelled(
        used,
        test=config.data.test,
        judge=config.data.judge,
        seed=config.seed,
        near_duplicate=config.data.near_duplicate,
    )
    checks = _checks(config, used)
    model = resolve_model(config.model.name)
    if config.reading.sae is not None:
        from saesteer.saes.loading import check_planned, resolve_sae

        check_planned(model, resolve_sae(config.reading.sae), config.reading.sae)
    weights = _weights(model, config.reading.sae)
    root = Path(config.folder)
    shown = "" if checks is None else checks.digest
    digest = config.digest(texts=texts.digest, checks=shown, **weights)
    kept = root / "activations"
    reading = config.reading_digest(texts=texts.digest, **weights)
    plain = config.reading_digest(texts=shown, **weights)
    folder = root / f"{config.name}-{digest}"
    for place in (folder, kept):
        check_writable(place)
    return ProbePlan(
        config=config,
        texts=texts,
        used=used,
        places=places,
        split=split,
        checks=checks,
        model=model,
        folder=folder,
        store=kept / f"{portable_name(texts.name)}-{reading}.safetensors",
        checks_store=kept / f"checks-{plain}.safetensors",
    )


def _weights(model: ModelSource, sae: str | None) -> dict[str, str]:
    from saesteer.saes.loading import resolve_sae

    return source_digest(model) if sae is None else source_digest(model, resolve_sae(sae), sae)


def _texts(config: ProbeConfig) -> LabelledSet:
    data = config.data
    texts = read_labelled(
        data.source,
        format=data.format,
        text_key=data.text_key,
        label_key=data.label_key,
        group_key=data.group_key,
        classes=data.classes,
        drop_other=data.drop_other,
        skip_blank=data.skip_blank,
        threshold=data.threshold,
    )
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
    wanted = set(classes)
    places = np.flatnonzero([text.label in wanted for text in texts.texts])
    return replace(texts.subset(places.tolist()), classes=tuple(classes)), places


def _check_spans(texts: LabelledSet) -> None:
    for text in texts.texts:
        if text.span is None:
            raise DataError(
                f"{text.place or text.id}: the text has no span and reading.positions is 'span'; "
                "give it one, or use 'mean'."
            )


def _checks(config: ProbeConfig, used: LabelledSet) -> LabelledSet | None:
    if config.checks is None:
        return None
    checks = read_labelled(config.checks)
    known = [i for i, text in enumerate(checks.texts) if text.label in used.classes]
    if not known:
        raise ConfigError(
            f"checks {config.checks}: no text has a label of the classes "
            f"{', '.join(used.classes)}; give a list with these labels, or leave checks out."
        )
    return replace(checks.subset(known), classes=used.classes)
