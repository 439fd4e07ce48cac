"""Options that mean the same in every command, and checks of what several commands are given."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from saesteer.utils.errors import DataError, SteeringError


class Launcher(StrEnum):
    """Where work runs."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of each; a fair share if left out.")
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A parameter of submitit, such as partition=gpu."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="A setting that wins over the file's."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, load and write nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Model = Annotated[str | None, typer.Option("--model", help="The model.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 for the likeliest token.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds the sampling.")]
UnitName = Annotated[str, typer.Option(help="norm, raw or max_act.")]
Kl = Annotated[
    list[float] | None,
    typer.Option(
        help="In place of a strength: what it is to cost, nats per token; -0.3 the other way."
    ),
]
Cost = Annotated[
    float | None,
    typer.Option(help="In place of a strength: what it is to cost, nats per token."),
]
SuggestSite = Annotated[
    bool, typer.Option("--suggest-site", help="Name the layer and positions to steer, and why.")
]


def check_strength_or_kl(strength: object, kl: object) -> None:
    """Refuse a strength together with what it is to cost.

    Raises:
        SteeringError: There are both.
    """
    if strength and kl:
        raise SteeringError("--strength and --kl both say how much; give one of them.")


def check_not_blank(texts: Sequence[str], what: str = "a prompt") -> None:
    """Refuse texts of which one is empty.

    Raises:
        DataError: One is.
    """
    if any(not text.strip() for text in texts):
        raise DataError(f"{what} is empty; give it at least one word.")


def check_samples(samples: int, temperature: float) -> None:
    """Refuse several samples that would all be equal.

    Raises:
        SteeringError: They would be.
    """
    if samples > 1 and temperature == 0.0:
        raise SteeringError(
            f"--samples {samples} at temperature 0 would all be equal; add --temperature 0.7."
        )
