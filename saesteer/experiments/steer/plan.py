"""What a run will do, worked out and checked before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.data import PairSet, Split, read_answers, read_questions, split_pairs
from saesteer.data.texts import Answer
from saesteer.experiments.steer.config import RunConfig
from saesteer.methods.registry import build_method, method_entry
from saesteer.models.resolve import ModelSource, check_shape, resolve_model
from saesteer.models.sites import Site
from saesteer.saes.loading import check_planned, resolve_sae
from saesteer.utils.cache import content_digest
from saesteer.utils.errors import ConfigError, DataError, SaeError

CACHE = "compare-cache"
# As many as a comparison's defaults leave of the bundled ones, so that both write the same.
OWN_QUESTIONS = 28


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every experiment that steers works from, checked."""

    config: Any
    answers: tuple[Answer, ...]  # neutral ones, which the cost is measured on
    training_answers: tuple[Answer, ...]  # other ones, for objective and Fisher metric
    questions: tuple[str, ...]  # which are answered
    training_questions: tuple[str, ...]  # other ones, for self-generated texts
    model: ModelSource
    sae: Path | tuple[str, str]  # the SAE's folder, or its release and id
    folder: Path

    @property
    def cache(self) -> Path:
        """Where gradients, metrics and unsteered texts are kept, by content."""
        return Path(self.config.folder) / CACHE


@dataclass(frozen=True, kw_only=True)
class SteerPlan(Plan):
    """A checked run; the same settings and pairs give the same folder."""

    pairs: PairSet
    split: Split
    held_out: PairSet  # the test pairs that are scored


def plan_run(config: RunConfig) -> SteerPlan:
    """Read the data and check every name in the settings; nothing is loaded or written.

    Raises:
        SaesteerError: Something does not fit, said in one sentence.
    """
    _check_names(config)
    settings = config.pairs
    pairs = settings.read(max_pairs=settings.max_pairs, seed=config.seed)
    split = split_pairs(
        pairs,
        validation=settings.validation,
        test=settings.test,
        seed=config.seed,
        threshold=settings.near_duplicate,
    )
    if len(split.train) < 2 or len(split.test) < 2:
        raise DataError(
            f"the split leaves {len(split.train)} training and {len(split.test)} test pairs; give "
            "more pairs or change pairs.test and pairs.validation."
        )
    limit = config.evaluation.max_pairs or len(split.test)
    parts = shared_parts(config, "completions", [config.method.name])
    fitted = {}
    if parts["training_answers"]:
        parts["training_questions"] = parts["training_questions"][-OWN_QUESTIONS:]
        fitted["training"] = str((parts["training_answers"], parts["training_questions"]))
    digest = config.digest(
        pairs=pairs.digest,
        answers=str(parts["answers"]),
        questions=str(parts["questions"]),
        **fitted,
        **source_digest(parts["model"], parts["sae"], config.sae),
    )
    folder = Path(config.folder) / f"{config.name}-{digest}"
    check_writable(folder)
    held_out = split.test.subset(range(min(limit, len(split.test))))
    return SteerPlan(
        config=config, pairs=pairs, split=split, held_out=held_out, folder=folder, **parts
    )


def shared_parts(config: Any, writing: str, methods: Iterable[str]) -> dict[str, Any]:
    """Return the fields that plans of all experiments with steering have.

    Args:
        config: The settings.
        writing: The group of settings that names the questions.
        methods: What is fitted; texts to train with are kept for those that need an objective.

    Raises:
        SaesteerError: A file, the model or the SAE is not there, or no text is left to train with.
    """
    if config.site is not None:
        Site.parse(config.site)
    cost, settings = config.evaluation, getattr(config, writing)
    answers, questions = read_answers(cost.neutral), read_questions(settings.questions)
    training: dict[str, Any] = {"training_answers": (), "training_questions": ()}
    if any("objective" in method_entry(method).needs for method in methods):
        left = answers[cost.neutral_answers :][: config.objective.neutral_answers]
        asked = questions[settings.n_questions :]
        if not left:
            raise DataError(
                f"evaluation.neutral {cost.neutral}: all its {len(answers)} answers measure the "
                "cost, and none is left to train with; give more, or lower "
                "evaluation.neutral_answers."
            )
        if config.objective.self_generated > 0 and not asked:
            raise DataError(
                f"{writing}.questions {settings.questions}: all its {len(questions)} questions are "
                "written to, and none is left for self-generated texts; give more, lower "
                f"{writing}.n_questions, or set objective.self_generated to 0."
            )
        training = {"training_answers": left, "training_questions": asked}
    model, sae = resolve_model(config.model.name), resolve_sae(config.sae)
    check_planned(model, sae, config.sae)
    if config.site is not None:
        check_shape(model, Site.parse(config.site), None, "site")
    return {
        "answers": answers[: cost.neutral_answers],
        "questions": questions[: settings.n_questions],
        "model": model,
        "sae": sae,
        **training,
    }


def source_digest(
    model: ModelSource, sae: Path | tuple[str, str] | None = None, name: str = ""
) -> dict[str, str]:
    """Return what tells a model's and an SAE's weights from others under the same name or path.

    Raises:
        SaeError: The SAE's folder is not whole.
    """
    if isinstance(sae, Path) and not (sae / "cfg.json").is_file():
        raise SaeError(f"SAE {name!r} is not at {sae}; install saesteer again, whole.")
    found = {
        "model": model.sha256
        or ("" if model.kind == "hub" else content_digest(Path(model.location)))
    }
    if sae is not None:
        found["sae"] = content_digest(sae) if isinstance(sae, Path) else ":".join(sae)
    return found


def _check_names(config: RunConfig) -> None:
    check_has_strength("method", config.method.name)
    build_method(config.method.name, config.method.settings)
    if config.pairs.validation + config.pairs.test >= 1:
        raise ConfigError(
            "pairs.validation and pairs.test leave no pairs to train on; make them sum to less "
            "than 1."
        )


def check_has_strength(field: str, method: str) -> None:
    """Refuse a method that is no vector.

    Raises:
        ConfigError: It is none, or there is no such method.
    """
    if method_entry(method).kind == "prompt":
        raise ConfigError(
            f"{field} {method!r} has no strength to match to a KL target; choose a vector's method."
        )


def check_writable(folder: Path) -> None:
    """Check, writing nothing, that a folder can be made and written.

    Raises:
        ConfigError: It cannot.
    """
    place = below = folder
    # os.path, because a name that can be no path is then only not there.
    while not os.path.exists(place) and place != place.parent:
        place, below = place.parent, place
    try:
        os.stat(below)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"folder {str(folder)[:100]!r} cannot be used ({reason}); choose another with "
            "--set folder=..."
        ) from error
    if not place.is_dir():
        raise ConfigError(
            f"folder {folder}: {place} is a file; choose another with --set folder=..."
        )
    if not os.access(place, os.W_OK):
        raise ConfigError(
            f"folder {folder} cannot be written; choose another with --set folder=..."
        )
