"""`saesteer compare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saesteer.cli.run import Overrides, Words

if TYPE_CHECKING:
    from saesteer.experiments.compare.plan import ComparePlan


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
    from saesteer.cli.show import console
    from saesteer.cli.show_compare import show_compare_plan, show_compare_result
    from saesteer.experiments.compare.config import CompareConfig
    from saesteer.experiments.compare.plan import only as only_these
    from saesteer.experiments.compare.plan import plan_compare
    from saesteer.experiments.compare.run import compare, measure_personas
    from saesteer.experiments.compare.workers import measure_in_processes
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
    plan = plan_compare(settings)
    if only:
        plan = only_these(plan, only)
    if dry_run:
        show_compare_plan(plan, console())
        return
    progress = terminal_progress()
    if measure_only:
        measure_personas(plan, progress)
        return

    def in_processes(plan: ComparePlan) -> None:
        measure_in_processes(plan, config, overrides, workers, progress)

    alone = workers == 1 or len(plan.personas) == 1
    found = compare(settings, progress, only=only or (), measure=None if alone else in_processes)
    show_compare_result(found, console())
