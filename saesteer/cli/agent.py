"""`saesteer agent`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saesteer.cli.options import Overrides


def agent_command(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file such as configs/agent/steering.yaml; the built-in if none."
        ),
    ] = None,
    goal: Annotated[str | None, typer.Option(help="The question to answer.")] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="How many experiments may be run.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model at an OpenAI-compatible endpoint that plans; none if left out."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="The endpoint's address.")] = None,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load and write nothing.")
    ] = False,
) -> None:
    """Plan experiments, run them within a budget, keep notes, and write a report."""
    import json

    from saesteer.agent import AgentConfig, run_agent
    from saesteer.agent.loop import agent_folder, check_agent
    from saesteer.agent.settings import DEFAULT
    from saesteer.cli.show import console
    from saesteer.cli.show_agent import show_agent, show_agent_plan
    from saesteer.utils.progress import Progress, terminal_progress
    from saesteer.utils.settings import load_config

    given = {"goal": goal, "budget.experiments": budget, "planner.model": model}
    given["planner.base_url"] = base_url
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    overrides += set_ or ()
    settings = load_config(config or DEFAULT, overrides, kind=AgentConfig)
    if dry_run:
        experiments = check_agent(settings, Progress())
        show_agent_plan(settings, experiments, agent_folder(settings), console())
        return
    show_agent(run_agent(settings, terminal_progress()), console())
