"""`saesteer sae`."""

from __future__ import annotations

import typer

from saesteer.cli.experiment import experiment_command

app = typer.Typer(no_args_is_help=True, help="Train sparse autoencoders.")


@app.callback()
def _sae() -> None:
    """Train sparse autoencoders."""


app.command("train")(
    experiment_command(
        "train_sae", "Train an SAE, going on where an earlier run of the same settings stopped."
    )
)
