"""What a run will do, worked out and checked before any model is loaded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.data import PairSet, Split, read_answers, read_pairs, read_questions, split_pairs
from saesteer.data.answers import Answer
from saesteer.experiments.steer.config import RunConfig
from saesteer.methods.registry import build_method, method_entry
from saesteer.models.resolve import ModelSource, resolve_model
from saesteer.models.shape import check_shape
from saesteer.models.sites import Site
from saesteer.saes.loading import check_planned, resolve_sae
from saesteer.utils.content import content_digest
from saesteer.utils.errors import ConfigError, DataError, SaeError

CACHE = "compare-cache"
# As many as a comparison's defaults leave of the bundled ones, so that both write the same.
OWN_QUESTIONS = 28


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        config: Its settings.
        pairs: All pairs.
        split: Training, validation and test pairs.
        held_out: The test pairs that are scored.
        answers: Neutral answers for the divergence.
        training_answers: Other ones that an objective is measured on; none where none is.
        questions: Questions for the completions.
        training_questions: Other ones for the model's own words; none where there are none.
        model: Where the model comes from.
        sae: The SAE's folder, or its release and id.
        folder: The run's folder; the same settings and pairs give the same one.
    """

    config: RunConfig
    pairs: PairSet
    split: Split
    held_out: PairSet
    answers: tuple[Answer, ...]
    training_answers: tuple[Answer, ...]
    questions: tuple[str, ...]
    training_questions: tuple[str, ...]
    model: ModelSource
    sae: Path | tuple[str, str]
    folder: Path

    @property
    def cache(self) -> Path:
        """Where gradients and metrics are kept, by content."""
        return Path(self.config.folder) / CACHE


def plan_run(config: RunConfig) -> Plan:
    """Read the data and check every name in the settings; nothing is loaded or written.

    Raises:
        SaesteerError: Something does not fit, said in one sentence.
    """
    _check_names(config)
    if config.site is not None:
        Site.parse(config.site)
    pairs = read_pairs(
        config.pairs.source,
        format=config.pairs.format,
        positive_key=config.pairs.positive_key,
        negative_key=config.pairs.negative_key,
        min_label_confidence=config.pairs.min_label_confidence,
        max_pairs=config.pairs.max_pairs,
        seed=config.seed,
    )
    split = split_pairs(
        pairs,
        validation=config.pairs.validation,
        test=config.pairs.test,
        seed=config.seed,
        threshold=config.pairs.near_duplicate,
    )
    limit = config.evaluation.max_pairs
    held_out = (
        split.test if limit is None else split.test.subset(range(min(limit, len(split.test))))
    )
    answers = read_answers(config.evaluation.neutral)
    questions = read_questions(config.completions.questions)
    measured = answers[: config.evaluation.neutral_answers]
    asked = questions[: config.completions.n_questions]
    training_answers: tuple[Answer, ...] = ()
    training_questions: tuple[str, ...] = ()
    fitted = {}
    if "objective" in method_entry(config.method.name).needs:
        training_answers = left_answers(config, answers)
        training_questions = left_questions(config, "completions", questions)[-OWN_QUESTIONS:]
        fitted = {"training": str((training_answers, training_questions))}
    model, sae = resolve_model(config.model.name), resolve_sae(config.sae)
    check_planned(model, sae, config.sae)
    if config.site is not None:
        check_shape(model, Site.parse(config.site), None, "site")
    digest = config.digest(
        pairs=pairs.digest,
        answers=str(measured),
        questions=str(asked),
        **fitted,
        **source_digest(model, sae, config.sae),
    )
    folder = Path(config.folder) / f"{config.name}-{digest}"
    check_writable(folder)
    return Plan(
        config=config,
        pairs=pairs,
        split=split,
        held_out=held_out,
        answers=measured,
        training_answers=training_answers,
        questions=asked,
        training_questions=training_questions,
        model=model,
        sae=sae,
        folder=folder,
    )


def left_answers(config: Any, answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Return the neutral answers that an objective may train with: those that measure no cost.

    Raises:
        DataError: There are none.
    """
    left = answers[config.evaluation.neutral_answers :][: config.objective.neutral_answers]
    if not left:
        raise DataError(
            f"evaluation.neutral {config.evaluation.neutral}: all its {len(answers)} answers "
            "measure the cost, and none is left to train with; give more, or lower "
            "evaluation.neutral_answers."
        )
    return left


def left_questions(config: Any, group: str, questions: tuple[str, ...]) -> tuple[str, ...]:
    """Return the questions that own words may train on: those that no completion answers.

    Args:
        config: The settings.
        group: Those of the completions.
        questions: All questions.

    Raises:
        DataError: There are none, and the objective wants own words.
    """
    settings = getattr(config, group)
    left = questions[settings.n_questions :]
    if config.objective.own_words > 0 and not left:
        raise DataError(
            f"{group}.questions {settings.questions}: all its {len(questions)} questions are "
            f"written to, and none is left to train own words on; give more, lower "
            f"{group}.n_questions, or set objective.own_words to 0."
        )
    return left


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
    from saesteer.methods.features import CLUSTERINGS, CRITERIA, REGRESSIONS

    if method_entry(config.method.name).kind == "prompt":
        raise ConfigError(
            f"method {config.method.name!r} has no strength to match to a KL target; choose a "
            "vector's method."
        )
    build_method(config.method.name, config.method.settings)
    _check_name("selection.criterion", config.selection.criterion, CRITERIA)
    _check_name("clustering.method", config.clustering.method, CLUSTERINGS)
    _check_name("regression.method", config.regression.method, REGRESSIONS)
    if config.pairs.validation + config.pairs.test >= 1:
        raise ConfigError(
            "pairs.validation and pairs.test leave no pairs to train on; make them sum to less "
            "than 1."
        )


def _check_name(field: str, name: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{field} {name!r} is unknown{hint}; choose one of {', '.join(names)}.")


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


def too_few(split: Split) -> None:
    """Refuse splits on which nothing can be fitted or measured.

    Raises:
        DataError: There are fewer than two training or test pairs.
    """
    if len(split.train) < 2 or len(split.test) < 2:
        raise DataError(
            f"the split leaves {len(split.train)} training and {len(split.test)} test pairs; give "
            "more pairs or change pairs.test and pairs.validation."
        )
