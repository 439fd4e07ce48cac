"""`saesteer run`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file such as configs/agreeableness.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="A setting that wins over the file's."),
]


Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]", help="Settings as a sweep gives them; as --set."),
]


def run_command(
    config: ConfigPath,
    words: Words = None,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load and write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json instead of tables.")
    ] = False,
) -> None:
    """From contrastive pairs to a steered model, with evidence on held-out pairs."""
    from saesteer.cli.show import show_steer_plan
    from saesteer.experiments.steer.config import RunConfig
    from saesteer.experiments.steer.experiment import Steer
    from saesteer.report.terminal import console
    from saesteer.sweeps.overrides import swept_overrides
    from saesteer.utils.progress import terminal_progress
    from saesteer.utils.settings import load_config

    swept = swept_overrides(words or (), os.environ)
    settings = load_config(config, [*(set_ or ()), *swept], kind=RunConfig)
    experiment = Steer(settings, terminal_progress())
    if dry_run:
        show_steer_plan(experiment)
        return
    result = experiment.run()
    if as_json:
        typer.echo(json.dumps(result.metrics, indent=2))
    else:
        experiment.report(result).print(console(), result.folder.path)
