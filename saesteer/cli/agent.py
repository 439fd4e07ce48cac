"""`saesteer agent`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saesteer.cli.options import DryRun, Overrides

if TYPE_CHECKING:
    from saesteer.agent import AgentConfig


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
    dry_run: DryRun = False,
) -> None:
    """Plan experiments, run them within a budget, keep notes, and write a report."""
    from saesteer.agent import AgentConfig, run_agent
    from saesteer.agent.settings import DEFAULT
    from saesteer.report.terminal import console
    from saesteer.utils.progress import terminal_progress
    from saesteer.utils.settings import load_config

    given = {"goal": goal, "budget.experiments": budget, "planner.model": model}
    given["planner.base_url"] = base_url
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    overrides += set_ or ()
    settings = load_config(config or DEFAULT, overrides, kind=AgentConfig)
    if dry_run:
        _show_plan(settings)
        return
    result = run_agent(settings, terminal_progress())
    result.report.print(console(), result.folder.path)


def _show_plan(config: AgentConfig) -> None:
    from saesteer.agent.loop import check_agent
    from saesteer.report import Table
    from saesteer.report.terminal import show_plan
    from saesteer.utils.progress import Progress

    kinds, budget = check_agent(config, Progress()).kinds, config.budget
    money = "" if budget.money is None else f", money {budget.money:g}"
    fields = {
        "goal": config.goal,
        "planner": config.planner.model or "seeded, without a language model",
        "budget": f"{budget.experiments} experiments, {budget.tokens:,} tokens{money}, "
        f"{budget.seconds:.0f} s, {budget.most_turns} answers",
    }
    rows = [[name, kind.about] for name, kind in kinds.items()]
    show_plan(fields, config.path, [Table(["kind", "what it finds"], rows, most=len(rows))])
