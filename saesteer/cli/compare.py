"""`saesteer compare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from saesteer.cli.run import Overrides, Words


def compare_command(
    config: Annotated[
        Path, typer.Argument(help="A YAML file such as configs/compare/personas.yaml.")
    ],
    words: Words = None,
    set_: Overrides = None,
    persona: Annotated[
        list[str] | None,
        typer.Option(help="Pairs to compare on, in place of the file's: a bundled name or a file."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these of the personas, by name.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the personas.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load and write nothing.")
    ] = False,
    measure_only: Annotated[bool, typer.Option("--measure-only", hidden=True)] = False,
) -> None:
    """Hold every method against the others at equal cost, over personas, with a report."""
    from saesteer.cli.show_compare import show_compare_plan
    from saesteer.experiments.compare.config import CompareConfig
    from saesteer.experiments.compare.experiment import Compare
    from saesteer.experiments.compare.workers import measure_in_processes
    from saesteer.report.terminal import console
    from saesteer.sweeps.overrides import swept_overrides
    from saesteer.utils.progress import terminal_progress
    from saesteer.utils.settings import load_config

    overrides = list(set_ or ())
    if persona:
        # JSON is YAML, whatever the names hold.
        import json

        overrides.append(f"personas={json.dumps(persona)}")
    overrides += swept_overrides(words or (), os.environ)
    settings = load_config(config, overrides, kind=CompareConfig)
    progress = terminal_progress()
    experiment = Compare(settings, progress)
    if only:
        experiment.only(only)
    if dry_run:
        show_compare_plan(experiment.plan)
        return
    if measure_only:
        experiment.check()
        experiment.measure()
        return
    if workers > 1 and len(experiment.plan.personas) > 1:
        experiment.elsewhere = lambda plan: measure_in_processes(
            plan, config, overrides, workers, progress
        )
    result = experiment.run()
    experiment.report(result).print(console(), result.folder.path)
