"""`saesteer run` and `saesteer features`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file such as configs/agreeableness.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="A setting that wins over the file's."),
]


def run_command(
    config: ConfigPath,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load and write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json instead of tables.")
    ] = False,
) -> None:
    """From contrastive pairs to a steered model, with evidence on held-out pairs."""
    from saesteer.cli.show import show_plan, show_result
    from saesteer.config import load_config
    from saesteer.pipeline import run
    from saesteer.plan import plan_run, too_few
    from saesteer.progress import terminal_progress

    settings = load_config(config, set_ or ())
    plan = plan_run(settings)
    too_few(plan.split)
    if dry_run:
        show_plan(plan)
        return
    result = run(settings, terminal_progress())
    if as_json:
        typer.echo(json.dumps(result.metrics, indent=2))
    else:
        show_result(plan, result)


def features_command(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    top: Annotated[int, typer.Option(min=0, help="How many features to show.")] = 32,
) -> None:
    """Show the features of a run's vector."""
    from saesteer.cli.show import show_features
    from saesteer.errors import OutputError
    from saesteer.tracking import RunFolder

    if not (folder / "features.json").is_file():
        raise OutputError(f"{folder} holds no features.json; give the folder of a finished run.")
    features = RunFolder(folder).read_json("features.json")
    try:
        show_features(features, top)
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{folder / 'features.json'} holds no features of a run ({error!r}); delete it and "
            "run saesteer run again."
        ) from error
