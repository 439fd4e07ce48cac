"""What a comparison will do, worked out and checked before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saesteer.data import (
    PairSet,
    datasets_folder,
    read_answers,
    read_pairs,
    read_questions,
    read_texts,
)
from saesteer.data.answers import Answer
from saesteer.experiments.compare.config import CompareConfig, PersonaSettings
from saesteer.experiments.compare.splits import PersonaSplit, split_persona
from saesteer.experiments.steer.plan import (
    CACHE,
    check_writable,
    left_answers,
    left_questions,
    source_digest,
)
from saesteer.methods.registry import build_method, method_entry
from saesteer.models.resolve import ModelSource, resolve_model
from saesteer.models.shape import check_shape
from saesteer.models.sites import Site
from saesteer.saes.loading import check_planned, resolve_sae
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.run_folder import RunFolder

DONE = "done.json"


@dataclass(frozen=True)
class PersonaPlan:
    """One persona, read and divided.

    Attributes:
        settings: Its settings.
        pairs: All its pairs.
        splits: Its parts, by seed.
        folder: Where its results go; the same settings and pairs give the same one, whoever else
            is compared.
        own: Whether it is one of the bundled sets.
    """

    settings: PersonaSettings
    pairs: PairSet
    splits: dict[int, PersonaSplit]
    folder: Path
    own: bool

    @property
    def name(self) -> str:
        """The persona's name."""
        return self.settings.label

    @property
    def done(self) -> bool:
        """Whether its folder holds everything."""
        folder = RunFolder(self.folder)
        record = folder.read_json(DONE) if folder.has(DONE) else None
        files = record.get("files") if isinstance(record, dict) else None
        return files is not None and all(map(folder.has, files))


@dataclass(frozen=True)
class ComparePlan:
    """A checked comparison.

    Attributes:
        config: Its settings.
        personas: The personas.
        answers: Neutral answers that the cost is measured on.
        training_answers: Other neutral answers, for objective and Fisher metric.
        questions: Questions that are written to.
        training_questions: Other questions, for own words.
        prose: Plain texts for the loss.
        model: Where the model comes from.
        sae: The SAE's folder, or its release and id.
        folder: The comparison's folder.
    """

    config: CompareConfig
    personas: tuple[PersonaPlan, ...]
    answers: tuple[Answer, ...]
    training_answers: tuple[Answer, ...]
    questions: tuple[str, ...]
    training_questions: tuple[str, ...]
    prose: tuple[str, ...]
    model: ModelSource
    sae: Path | tuple[str, str]
    folder: Path

    @property
    def cache(self) -> Path:
        """Where gradients, metrics and unsteered texts are kept, by content."""
        return Path(self.config.folder) / CACHE


def plan_compare(config: CompareConfig) -> ComparePlan:
    """Read the data and check every name in the settings; nothing is loaded or written.

    Raises:
        SaesteerError: Something does not fit, said in one sentence.
    """
    _check_methods(config)
    if config.site is not None:
        Site.parse(config.site)
    answers = read_answers(config.evaluation.neutral)
    measured = answers[: config.evaluation.neutral_answers]
    training = left_answers(config, answers)
    questions = read_questions(config.writing.questions)
    asked = questions[: config.writing.n_questions]
    training_questions = left_questions(config, "writing", questions)
    prose = _prose(config)
    model, sae = resolve_model(config.model.name), resolve_sae(config.sae)
    check_planned(model, sae, config.sae)
    if config.site is not None:
        check_shape(model, Site.parse(config.site), None, "site")
    common = {
        "answers": str(answers),
        "questions": str(questions),
        "prose": str(prose),
        **source_digest(model, sae, config.sae),
    }
    personas = tuple(_persona_plan(config, settings, common) for settings in config.personas)
    plan = ComparePlan(
        config=config,
        personas=personas,
        answers=measured,
        training_answers=training,
        questions=asked,
        training_questions=training_questions,
        prose=prose,
        model=model,
        sae=sae,
        folder=_folder(config, personas),
    )
    for folder in (plan.folder, plan.cache, *(persona.folder for persona in personas)):
        check_writable(folder)
    return plan


def _folder(config: CompareConfig, personas: Sequence[PersonaPlan]) -> Path:
    whole = json.dumps(
        [
            [p.folder.name for p in personas],
            config.model_dump(mode="json", include={"name", "headline", "baseline", "llm_judge"}),
            config.writing.shown,
        ]
    )
    digest = hashlib.sha256(whole.encode()).hexdigest()[:10]
    return Path(config.folder) / f"{config.name}-{digest}"


def _check_methods(config: CompareConfig) -> None:
    for method in config.methods:
        for settings in [{}, *method.grid]:
            build_method(method.name, {**method.settings, **settings})
    for field in ("headline", "baseline"):
        name = getattr(config, field)
        if method_entry(name).kind == "prompt":
            raise ConfigError(
                f"{field} {name!r} has no strength to match to a KL target; choose a "
                "vector's method."
            )
    if config.writing.n_questions and not config.writing.kl_targets:
        raise ConfigError("writing.kl_targets is empty; name a KL target, or set n_questions to 0.")


def _prose(config: CompareConfig) -> tuple[str, ...]:
    name, limit = config.side_effects.prose, config.side_effects.n_prose
    if not limit:
        return ()
    file = datasets_folder() / "prose.jsonl" if name == "prose" else Path(name)
    return tuple(read_texts(file, limit=limit))


def _persona_plan(
    config: CompareConfig, settings: PersonaSettings, common: dict[str, str]
) -> PersonaPlan:
    try:
        pairs = read_pairs(
            settings.source,
            format=settings.format,
            positive_key=settings.positive_key,
            negative_key=settings.negative_key,
            min_label_confidence=settings.min_label_confidence,
        )
        # The name that vectors and reports carry.
        pairs = replace(pairs, name=settings.label)
        splits = {seed: split_persona(pairs, config.splits, seed) for seed in config.seeds}
    except SaesteerError as error:
        raise type(error)(f"persona {settings.label}: {error}") from error
    digest = config.persona_digest(settings, pairs=pairs.digest, **common)
    folder = Path(config.folder) / "personas" / f"{settings.label}-{digest}"
    own = not Path(settings.source).exists()
    return PersonaPlan(settings, pairs, splits, folder, own)


def only(plan: ComparePlan, names: list[str]) -> ComparePlan:
    """Return the plan with some of its personas.

    Raises:
        ConfigError: A name is not one of them.
    """
    known = {persona.name: persona for persona in plan.personas}
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise ConfigError(f"--only {name!r} is no persona here; choose from {listed}.")
    chosen = tuple(known[name] for name in dict.fromkeys(names))
    # A part is a comparison of its own, and must not pass for the whole one.
    return replace(plan, personas=chosen, folder=_folder(plan.config, chosen))
