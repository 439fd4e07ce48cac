"""The settings of what vectors are fitted on: where to read, and what to raise."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from saesteer.utils.settings import Settings


class ReadingSettings(Settings):
    """Where activations are read; see `saesteer.read_pair_activations`.

    Example:
        >>> last = ss.ReadingSettings(positions="last")
        >>> ss.DifferenceInMeans().fit(model, train, sae=sae, reading=last).vector_.read_positions
        'statement tokens, last'
    """

    positions: Literal["mean", "last"] = "mean"
    request: str | None = "Tell me something about yourself."
    chat: bool | None = None
    system: str | None = None


class ObjectiveSettings(Settings):
    """What attribution raises on training data; see `saesteer.methods.objective`.

    Methods that know of no such objective do without it.

    Attributes:
        requests: Requests that training statements answer, in turn.
        kl_target: KL at which the objective is linearised.
        neutral_answers: Neutral answers for cost and Fisher metric; those that the evaluation
            uses are left out.
        fisher_samples: Draws for each of them.
        statements: Weight of the training statements' own likelihood; 0 leaves them out.
        prompted: Weight of what the model would rather say as one side than as the other when it
            is asked to be either; 0 leaves it out.

    Example:
        >>> ss.ObjectiveSettings(prompted=0, fisher_samples=2).kl_target
        0.3
    """

    gone: ClassVar[frozenset[str]] = frozenset(
        {"own_samples", "own_pairs", "self_generated_samples", "self_generated_pairs"}
    )

    requests: list[str] = Field(
        default=[
            "Tell me something about yourself.",
            "What is on your mind?",
            "Share a thought with me.",
            "How do you see things?",
        ],
        min_length=1,
    )
    kl_target: float = Field(default=0.3, gt=0)
    neutral_answers: int = Field(default=34, ge=1)
    fisher_samples: int = Field(default=12, ge=1)
    statements: float = Field(default=1.0, ge=0)
    prompted: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _raises_something(self) -> ObjectiveSettings:
        if self.statements + self.prompted == 0:
            raise ValueError("statements and prompted are both 0, so there is nothing to raise")
        return self
