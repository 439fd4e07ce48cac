"""What `saesteer agent` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saesteer.cli.show import heading, table

if TYPE_CHECKING:
    from rich.console import Console

    from saesteer.agent import AgentConfig, AgentResult
    from saesteer.agent.experiments import Experiments


def show_agent_plan(
    config: AgentConfig, experiments: Experiments, folder: Path, out: Console
) -> None:
    """Print what an agent would do."""
    budget = config.budget
    out.print(f"Goal:    {config.goal}")
    out.print(f"Planner: {config.planner.model or 'seeded, without a language model'}")
    rows = table("kind", "what it finds")
    for name, kind in experiments.kinds.items():
        rows.add_row(name, kind.about)
    out.print(rows)
    money = "" if budget.money is None else f", money {budget.money:g}"
    out.print(
        f"Budget:  {budget.experiments} experiments, {budget.tokens:,} tokens{money}, "
        f"{budget.seconds:.0f} s, {budget.most_turns} answers"
    )
    out.print(f"Would write to {folder}")


def show_agent(result: AgentResult, out: Console) -> None:
    """Print the answer, the checked claims, what was spent, and where everything is."""
    from saesteer.agent.report import REPORT, TEXT

    metrics, folder = result.metrics, result.folder.path
    heading(out, "Answer")
    out.print(metrics["answer"] or f"None: {result.ended_by}.")
    if metrics["claims"]:
        heading(out, "Claims, checked by the program")
        rows = table("verdict", "claim", "experiments", "found")
        for claim in metrics["claims"]:
            names = ", ".join(claim["experiments"]) or "none"
            rows.add_row(claim["verdict"], claim["claim"], names, claim["remark"])
        out.print(rows)
    spent = metrics["spent"]
    out.print()
    out.print(
        f"Spent:   {spent['experiments']} experiments, {spent['tokens']:,} tokens, "
        f"{spent['seconds']:.0f} s; ended because {result.ended_by}."
    )
    out.print(f"Report:  {folder / REPORT} and {folder / TEXT}")
    out.print(f"Numbers: {folder / 'metrics.json'}")
    if metrics["answer"] is None:
        more = "with a larger --budget if that is spent"
        out.print(f"Next:    the same command goes on from here, {more}")
    else:
        out.print("Next:    saesteer runs list, and read the experiments behind each claim")
