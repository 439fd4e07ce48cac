"""`saesteer sae train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from saesteer.cli.run import Overrides

app = typer.Typer(no_args_is_help=True, help="Train and inspect sparse autoencoders.")


@app.callback()
def _sae() -> None:
    """Train and inspect sparse autoencoders."""


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(help="A YAML file such as configs/sae/smollm2.yaml.")],
    set_: Overrides = None,
) -> None:
    """Train an SAE, going on where an earlier run of the same settings stopped."""
    from saesteer.cli.show import console, show_doctor
    from saesteer.experiments.train_sae import train_sae
    from saesteer.saes.settings import SaeTrainingConfig
    from saesteer.utils.progress import terminal_progress
    from saesteer.utils.settings import load_config

    settings = load_config(config, set_ or (), kind=SaeTrainingConfig)
    trained = train_sae(settings, terminal_progress())
    assert trained.report is not None
    show_doctor(trained.report, str(trained.folder), settings.model, settings.site)
    out = console()
    where = trained.folder
    out.print(f"\nThe SAE, its card and its feature table are in {where}", soft_wrap=True)
    command = f"Next: saesteer run configs/agreeableness.yaml --set {shlex.quote(f'sae={where}')}"
    out.print(command, soft_wrap=True)
