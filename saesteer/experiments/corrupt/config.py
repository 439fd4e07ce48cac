"""A corruption run's settings (`configs/corruption/*.yaml`), checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

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
from saesteer.experiments.config import ExperimentConfig, check_writable
from saesteer.models.resolve import ModelShape, ModelSource, model_shape, resolve_model
from saesteer.utils.cache import content_digest
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
    """The tasks; see `load_tasks` and `task_rows`.

    Attributes:
        source: "bundled" for all that come with saesteer, names of some of them, JSON files, or
            folders of such.
        shots: Examples before each question.
        max_questions: The most questions of each task; all if null.
    """

    source: list[Source] = Field(default=["bundled"], min_length=1)
    shots: int = Field(default=4, ge=0, le=64)
    max_questions: int | None = Field(default=24, ge=1)


class FamilySettings(Settings):
    """A family of programs; see `make_family`.

    Attributes:
        kind: What is done at every layer in turn, or for "keep" at every depth.
        width: Layers changed at once.
        count: How many permutations.
    """

    kind: FamilyKind
    width: int = Field(default=1, ge=1)
    count: int = Field(default=5, ge=1, le=1000)


class ReferenceSettings(Settings):
    """The texts that linear maps are fitted on and means are measured over.

    Attributes:
        source: "bundled", or a .txt or .jsonl file (also .gz) as `read_texts` takes it.
        max_texts: The most texts.
        held_out: Share of them on which R2 is measured.
    """

    source: Source = "bundled"
    max_texts: int = Field(default=1000, ge=10)
    held_out: float = Field(default=0.2, gt=0, lt=1)


class ShownSettings(Settings):
    """The completions shown side by side.

    Attributes:
        prompts: What is completed, as plain text.
        family: Whose programs complete it.
        every: Only every n-th program of it, and always the last.
        programs: Programs that complete it in place of a family.
        max_new_tokens: The most tokens.
    """

    prompts: list[str] = Field(
        default=["The capital of France is", "Once upon a time, there was a", "2 + 2 ="]
    )
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
    """Everything a corruption run depends on.

    Attributes:
        programs: Single programs: expressions such as "skip 4-6", or lists of layers.
        reference: Read only where a program needs it.
        completions: Completions shown; none if null.
        top_tokens: How many tokens that gain and lose most are kept for each task and program.
        right_share: A task has come right at the first depth whose accuracy is this share of the
            intact model's.
        min_accuracy: The intact model's accuracy from which a task counts as solved.
        max_tokens: The most tokens in a batch.
        seed: Seeds the draw of few-shot examples and of held-out texts.
    """

    kind: ClassVar[str] = "corrupt"

    tasks: TaskSettings = TaskSettings()
    families: list[FamilySettings] = Field(default=[])
    programs: list[ProgramText] = Field(default=[], max_length=10_000)
    reference: ReferenceSettings = ReferenceSettings()
    completions: ShownSettings | None = ShownSettings()
    top_tokens: int = Field(default=5, ge=0, le=1000)
    right_share: float = Field(default=0.8, gt=0, le=1)
    min_accuracy: float = Field(default=0.2, gt=0, le=1)
    max_tokens: int = Field(default=4096, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


class CorruptPlan(NamedTuple):
    """A checked corruption run."""

    config: CorruptConfig
    tasks: tuple[Task, ...]
    model: ModelSource
    # The model's layers and heads, where they can be told without loading it.
    shape: ModelShape | None
    # The same settings and tasks give the same one.
    folder: Path


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
    model = resolve_model(config.model.name)
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
    weights = model.sha256 or ("" if model.kind == "hub" else content_digest(Path(model.location)))
    digest = config.digest(tasks=str(tasks), model=weights)
    folder = Path(config.folder) / f"{config.name}-{digest}"
    check_writable(folder)
    return CorruptPlan(config, tasks, model, shape, folder)


def expand(config: CorruptConfig, n_layers: int, n_heads: int) -> Programs:
    """Return a run's programs for a model of so many layers and heads."""

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
