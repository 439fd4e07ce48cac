"""The `saesteer` command: thin faces of the package."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from saesteer.cli import (
    agent,
    configs,
    corrupt,
    doctor,
    features,
    generate,
    label,
    neuronpedia,
    patch,
    probe,
    runs,
    sweep,
    vector,
)
from saesteer.cli.app import app_command
from saesteer.cli.experiment import experiment_command, part_command
from saesteer.utils.errors import SaesteerError
from saesteer.utils.terminal import say
from saesteer.utils.text import one_line

LONGEST_ERROR = 2000


class _Stopped(Exception):
    """Ctrl-C, which typer would otherwise answer in its own words, or not at all."""


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Stopped from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Steer language models with sparse-autoencoder features, with evidence that it works.",
)
sae_app = typer.Typer(no_args_is_help=True, help="Train sparse autoencoders, test their labels.")
sae_app.command("label")(label.label_command)
sae_app.command("train")(
    experiment_command(
        "train_sae", "Train an SAE, going on where an earlier run of the same settings stopped."
    )
)
measure_app = typer.Typer(
    no_args_is_help=True, help="Measure every method on public data that you have downloaded."
)
measure_app.command("steering-bench")(
    experiment_command(
        "steering_bench", "How answer letters follow the strength, in and out of distribution."
    )
)
measure_app.command("axbench")(
    experiment_command("axbench", "How well a vector's largest reading in a text tells a concept.")
)
STEER = "From contrastive pairs to a steered model, with evidence on held-out pairs."
app.command("steer")(experiment_command("steer", STEER))
app.command("run")(experiment_command("steer", f"{STEER} The older name of steer."))
app.command("compare")(
    experiment_command(
        "compare",
        "Hold every method against the others at equal cost, over personas, with a report.",
    )
)
app.command("generate")(generate.generate_command)
app.command("doctor")(doctor.doctor_command)
app.command("app")(app_command)
app.command("features")(features.features_command)
app.command("configs")(configs.configs_command)
app.command("agent")(agent.agent_command)
app.command("sweep")(sweep.sweep_command)
app.command("worker")(sweep.worker_command)
app.command("part", hidden=True)(part_command)
app.add_typer(patch.app, name="patch")
app.add_typer(probe.app, name="probe")
app.add_typer(corrupt.app, name="corrupt")
app.add_typer(neuronpedia.app, name="neuronpedia")
app.add_typer(runs.app, name="runs")
app.add_typer(sae_app, name="sae")
app.add_typer(measure_app, name="measure")
app.add_typer(vector.app, name="vector")


def _show_version(wanted: bool) -> None:
    if wanted:
        from saesteer import __version__

        say(__version__)
        raise typer.Exit


@app.callback()
def _root(
    # Eager, so that it needs no command behind it.
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    pass


class _Said(logging.Handler):
    """Prints what is logged as everything else is printed."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"warning: {record.getMessage()}", err=True)


def _quiet_libraries() -> None:
    """Silence libraries' own bars and notices, which would drown ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", err=True)
    logging.getLogger("saesteer").handlers = [_Said()]
    for name in ("transformers", "transformer_lens", "sae_lens"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run the command line; an error of ours is one sentence and exit code 2."""
    _quiet_libraries()
    try:
        app(prog_name="saesteer")
    except SaesteerError as error:
        # A sentence, also where it quotes names with line breaks.
        say(f"error: {one_line(error, LONGEST_ERROR)}", err=True)
        sys.exit(2)
    except (_Stopped, KeyboardInterrupt):
        say("\nstopped; run the same command again to go on where it stopped.", err=True)
        sys.exit(130)
    except Exception:
        # A fault of ours; what it quotes may be anybody's.
        say(traceback.format_exc(), err=True, end="")
        sys.exit(1)


if __name__ == "__main__":
    main()
