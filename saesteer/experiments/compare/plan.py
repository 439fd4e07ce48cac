"""What a comparison will do, worked out and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saesteer.data import PairSet, Split, datasets_folder, read_texts, split_pairs
from saesteer.data.pairs import Description
from saesteer.data.splits import near_duplicate_cause
from saesteer.experiments.base import holds_listed
from saesteer.experiments.compare.config import CompareConfig, PersonaSettings, SplitSettings
from saesteer.experiments.config import check_writable, weights_digest
from saesteer.experiments.steering import SteeringPlan, check_also, check_has_strength, shared_parts
from saesteer.utils.errors import ConfigError, DataError, SaesteerError
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import short_hash

DONE = "done.json"
FEWEST = {"train": 4, "validation": 2, "test": 2, "judge": 10}
TEXTS = ("answers", "training_answers", "questions", "training_questions")


@dataclass(frozen=True)
class PersonaSplit(Split):
    """Disjoint parts of a persona's pairs; no statement nor its near-duplicate stands in two.

    Vectors are fitted to train, settings chosen by validation, and test is opened once.
    """

    judge: PairSet  # trains the behaviour judge; the same under every seed


@dataclass(frozen=True)
class PersonaPlan:
    """One persona, read and divided."""

    settings: PersonaSettings
    pairs: PairSet
    answers: PairSet | None  # of known sides, where somebody has written some
    described: Description | None  # either side in words
    splits: dict[int, PersonaSplit]  # by seed
    folder: Path  # settings, pairs and their split give the same one, whoever else is compared
    own: bool  # whether it is one of the bundled sets

    @property
    def name(self) -> str:
        """The persona's name."""
        return self.settings.label

    @property
    def done(self) -> bool:
        """Whether its folder holds everything."""
        folder = RunFolder(self.folder)
        return folder.has(DONE) and holds_listed(folder, DONE)


@dataclass(frozen=True, kw_only=True)
class ComparePlan(SteeringPlan):
    """A checked comparison."""

    personas: tuple[PersonaPlan, ...]
    prose: tuple[str, ...]  # plain texts for the loss

    def only(self, names: Sequence[str]) -> ComparePlan:
        """The plan with some of its personas."""
        known = {persona.name: persona for persona in self.personas}
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"--only {name!r} is no persona here; choose from {', '.join(known)}."
                )
        chosen = tuple(known[name] for name in dict.fromkeys(names))
        # A part is a comparison of its own, and must not pass for the whole one.
        settings = [persona.settings for persona in chosen]
        config = self.config.model_copy(update={"personas": settings})
        return replace(self, config=config, personas=chosen, folder=_folder(config, chosen))


def plan_compare(config: CompareConfig) -> ComparePlan:
    """Read the data and check every name in the settings; nothing is loaded or written."""
    points = [
        (method.name, {**method.settings, **point})
        for method in config.methods
        for point in [{}, *method.grid]
    ]
    also = check_also(config, points)
    check_has_strength("headline", config.headline)
    check_has_strength("baseline", config.baseline)
    for method in config.writing.at_prompt or ():
        check_has_strength("writing.at_prompt", method)
    if config.writing.n_questions and not config.writing.kl_targets:
        raise ConfigError("writing.kl_targets is empty; name a KL target, or set n_questions to 0.")
    parts = shared_parts(config, "writing", [method.name for method in config.methods])
    source, limit = config.side_effects.prose, config.side_effects.n_prose
    file = datasets_folder() / "prose.jsonl" if source == "prose" else Path(source)
    prose = tuple(read_texts(file, limit=limit)) if limit else ()
    common = {
        **weights_digest(parts["model"], parts["sae"]),
        **{name: str(parts[name]) for name in TEXTS},
        "prose": str(prose),
        **also,
    }
    personas = tuple(_persona_plan(config, settings, common) for settings in config.personas)
    folder = _folder(config, personas)
    plan = ComparePlan(config=config, personas=personas, prose=prose, folder=folder, **parts)
    for place in (plan.folder, plan.cache, *(persona.folder for persona in personas)):
        check_writable(place)
    return plan


def _folder(config: CompareConfig, personas: Sequence[PersonaPlan]) -> Path:
    shown = config.model_dump(mode="json", include={"name", "headline", "baseline", "llm_judge"})
    digest = short_hash([[p.folder.name for p in personas], shown, config.writing.shown])
    return Path(config.folder) / f"{config.name}-{digest}"


def _persona_plan(
    config: CompareConfig, settings: PersonaSettings, common: dict[str, str]
) -> PersonaPlan:
    try:
        # The name that vectors and reports carry.
        pairs = replace(settings.read(), name=settings.label)
        answers = settings.read_answers()
        splits = {seed: split_persona(pairs, config.splits, seed) for seed in config.seeds}
    except SaesteerError as error:
        raise type(error)(f"persona {settings.label}: {error}") from error
    # The parts themselves: another way to divide the same pairs gives other numbers.
    parts = [getattr(split, part).digest for split in splits.values() for part in FEWEST]
    described = settings.described or config.describe or pairs.describe
    inputs = {**common, "answers": "" if answers is None else answers.digest}
    inputs |= {"described": str(described), "parts": short_hash(parts)}
    digest = config.persona_digest(settings, pairs=pairs.digest, **inputs)
    folder = Path(config.folder) / "personas" / f"{settings.label}-{digest}"
    own = not Path(settings.source).exists()
    return PersonaPlan(settings, pairs, answers, described, splits, folder, own)


def split_persona(pairs: PairSet, sizes: SplitSettings, seed: int) -> PersonaSplit:
    """Divide a persona's pairs; the seed decides on all parts but the judge's."""
    enough = sum(FEWEST.values())
    if len(pairs) < enough:
        raise DataError(
            f"{pairs.source}: its {len(pairs)} pairs are fewer than the {enough} that train, "
            "validation, test and judge need together; give more pairs."
        )
    rest = sizes.train + sizes.validation + sizes.test
    how = {"threshold": sizes.near_duplicate}
    judge_share = sizes.judge / (rest + sizes.judge)
    apart = split_pairs(pairs, validation=0.0, test=judge_share, seed=0, **how)
    shares = {"validation": sizes.validation / rest, "test": sizes.test / rest}
    divided = vars(split_pairs(apart.train, seed=seed, **shares, **how)) | {"judge": apart.test}
    kept = {
        name: part.subset(range(len(part))[: getattr(sizes, name)])
        for name, part in divided.items()
    }
    for name, fewest in FEWEST.items():
        if len(kept[name]) < fewest:
            raise DataError(
                f"{pairs.source}: its {len(pairs)} pairs leave {len(kept[name])} for {name}, fewer "
                f"than {fewest}{near_duplicate_cause(pairs, threshold=sizes.near_duplicate)}; give "
                "more pairs, or other proportions under splits."
            )
    return PersonaSplit(**kept)
