"""The settings of a corruption run (`configs/corruption/*.yaml`), checked before loading."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, field_validator

from saesteer.corruption.families import FamilyKind
from saesteer.corruption.program import check_program
from saesteer.experiments.config import ExperimentConfig
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
        every: Only every so manieth program of it, and always the last.
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
        name: What the run is called; part of its folder's name.
        tasks: The tasks.
        families: Families of programs.
        programs: Single programs: expressions such as "skip 4-6", or lists of layers.
        reference: Texts to fit and average over; read only where a program needs them.
        completions: Completions shown; none if null.
        top_tokens: How many tokens that gain and lose most are kept for each task and program.
        right_share: A task has come right at the first depth whose accuracy is this share of the
            intact model's.
        min_accuracy: The intact model's accuracy from which a task counts as solved.
        max_tokens: The most tokens in a batch.
        seed: Seeds the draw of few-shot examples and of held-out texts.
        folder: Where runs are kept.
        tracking: Where the run is recorded besides.
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
