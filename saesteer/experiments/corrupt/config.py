"""A corruption run's settings (`configs/corruption/*.yaml`), checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, field_validator

from saesteer.corruption.program import (
    Family,
    FamilyKind,
    LinearSpan,
    Program,
    check_program,
    every_nth,
    intact_program,
    make_family,
    parse_program,
)
from saesteer.corruption.tasks import Task, load_tasks
from saesteer.experiments.config import (
    ExperimentConfig,
    Plan,
    run_folder,
    sources,
    weights_digest,
)
from saesteer.models.resolve import ModelShape, model_shape
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, Source


def _readable(program: str | list[int]) -> str | list[int]:
    try:
        check_program(program if isinstance(program, str) else str(program))
    except ConfigError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return program


ProgramText = Annotated[str | list[int], AfterValidator(_readable)]


class TaskSettings(Settings):
    """The tasks; see `load_tasks` and `task_rows`."""

    # "bundled" for all that come with saesteer, names of some of them, JSON files, or folders.
    source: list[Source] = Field(default=["bundled"], min_length=1)
    # Examples before each question.
    shots: int = Field(default=4, ge=0, le=64)
    # Of each task; all if null.
    max_questions: int | None = Field(default=24, ge=1)


class FamilySettings(Settings):
    """A family of programs; see `make_family`."""

    # What is done at every layer in turn, or for "keep" at every depth.
    kind: FamilyKind
    # Layers changed at once.
    width: int = Field(default=1, ge=1)
    # How many permutations.
    count: int = Field(default=5, ge=1, le=1000)


class ReferenceSettings(Settings):
    """The texts that linear maps are fitted on and means are measured over."""

    # "bundled", or a .txt or .jsonl file (also .gz) as `read_texts` takes it.
    source: Source = "bundled"
    max_texts: int = Field(default=1000, ge=10)
    # The share of them on which R2 is measured.
    held_out: float = Field(default=0.2, gt=0, lt=1)


class ShownSettings(Settings):
    """The completions shown side by side."""

    # What is completed, as plain text.
    prompts: list[str] = Field(
        default=["The capital of France is", "Once upon a time, there was a", "2 + 2 ="]
    )
    # Whose programs complete it, every n-th of them and always the last; or programs in its place.
    family: FamilyKind = "keep"
    every: int = Field(default=1, ge=1)
    programs: list[ProgramText] = Field(default=[], max_length=1000)
    max_new_tokens: int = Field(default=10, ge=1, le=1000)

    @field_validator("prompts")
    @classmethod
    def _not_blank(cls, prompts: list[str]) -> list[str]:
        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("holds an empty prompt; give it at least one word")
        return prompts


class CorruptConfig(ExperimentConfig):
    """Everything a corruption run depends on."""

    kind: ClassVar[str] = "corrupt"

    tasks: TaskSettings = TaskSettings()
    families: list[FamilySettings] = Field(default=[])
    # Single ones: expressions such as "skip 4-6", or lists of layers.
    programs: list[ProgramText] = Field(default=[], max_length=10_000)
    # Read only where a program needs it.
    reference: ReferenceSettings = ReferenceSettings()
    # None are shown if null.
    completions: ShownSettings | None = ShownSettings()
    # How many tokens that gain and lose most are kept for each task and program.
    top_tokens: int = Field(default=5, ge=0, le=1000)
    # A task has come right at the first depth whose accuracy is this share of the intact model's.
    right_share: float = Field(default=0.8, gt=0, le=1)
    # The intact model's accuracy from which a task counts as solved.
    min_accuracy: float = Field(default=0.2, gt=0, le=1)
    # Of a batch.
    max_tokens: int = Field(default=4096, ge=1)
    # Seeds the draw of few-shot examples and of held-out texts.
    seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True, kw_only=True)
class CorruptPlan(Plan):
    """A checked corruption run."""

    tasks: tuple[Task, ...]
    # The model's layers and heads, where they can be told without loading it.
    shape: ModelShape | None


@dataclass(frozen=True)
class Programs:
    """Everything that is run: the intact model first, no program twice."""

    all: tuple[Program, ...]
    # The families, and the single programs as the last one.
    families: tuple[Family, ...]
    # The programs that complete prompts.
    shown: tuple[Program, ...]

    @property
    def spans(self) -> tuple[LinearSpan, ...]:
        """The linear maps that they need."""
        every = (*self.all, *self.shown)
        return tuple(dict.fromkeys(span for program in every for span in program.spans))

    @property
    def need_means(self) -> bool:
        """Whether one of them puts something to its mean."""
        return any(program.needs_means for program in (*self.all, *self.shown))


def plan_corruption(config: CorruptConfig) -> CorruptPlan:
    """Read the tasks and check every program; nothing is loaded or written."""
    tasks = load_tasks(config.tasks.source)
    model, _ = sources(config)
    shape = model_shape(model)
    if shape is not None:
        expand(config, shape.n_layers, shape.n_heads)
    if not config.families and not config.programs:
        raise ConfigError(
            "there is nothing to run; name families (such as {kind: keep}) or programs."
        )
    if config.reference.source != "bundled" and not Path(config.reference.source).is_file():
        raise ConfigError(
            f"reference.source {config.reference.source!r} is not there; give a file, or bundled."
        )
    folder = run_folder(config, tasks=str(tasks), **weights_digest(model))
    return CorruptPlan(config=config, tasks=tasks, model=model, shape=shape, folder=folder)


def expand(config: CorruptConfig, n_layers: int, n_heads: int) -> Programs:
    """A run's programs for a model of so many layers and heads."""

    def parsed(texts: Sequence[str | list[int]]) -> tuple[Program, ...]:
        return tuple(parse_program(text, n_layers, n_heads=n_heads) for text in texts)

    families = [
        make_family(family.kind, n_layers, width=family.width, count=family.count)
        for family in config.families
    ]
    names = [family.name for family in families]
    if len(set(names)) < len(names):
        raise ConfigError("families names a kind twice with the same width; name it once.")
    single = parsed(config.programs)
    if single:
        families.append(Family("programs", "program", single))
    first = intact_program(n_layers)
    every = {str(first): first}
    for family in families:
        every.update({str(program): program for program in family.programs})
    completions, shown = config.completions, ()
    if completions is not None and completions.prompts:
        shown = parsed(completions.programs)
        if not shown:
            shown = every_nth(make_family(completions.family, n_layers), completions.every)
    return Programs(tuple(every.values()), tuple(families), shown)
