"""What `saesteer compare` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saesteer.cli.show import table

if TYPE_CHECKING:
    from rich.console import Console

    from saesteer.experiments.compare.plan import ComparePlan
    from saesteer.experiments.results import Results


def show_compare_plan(plan: ComparePlan, out: Console) -> None:
    """Print what a comparison would do."""
    config = plan.config
    out.print(f"{config.name}: {plan.model.name} with SAE {config.sae}")
    rows = table("persona", ("train", "right"), ("validation", "right"), ("test", "right"), "done")
    for persona in plan.personas:
        split = persona.splits[config.seeds[0]]
        done = "yes" if persona.done else "no"
        sizes = (len(split.train), len(split.validation), len(split.test))
        rows.add_row(persona.name, *map(str, sizes), done)
    out.print(rows)
    out.print("Methods: " + ", ".join(method.name for method in config.methods))
    null = config.random
    out.print(
        f"KL targets {', '.join(map(str, config.evaluation.kl_targets))} nats per token; seeds "
        f"{', '.join(map(str, config.seeds))}; null of {null.directions} directions and "
        f"{null.features} feature sets."
    )
    out.print(f"Would write to {plan.folder}")


def show_compare_result(result: Results, out: Console) -> None:
    """Print the summary, where everything is, and what to try next."""
    from saesteer.report.terminal import show_comparison

    show_comparison(result.metrics, out)
    folder = result.folder.path
    out.print()
    out.print(f"Report:  {result.report}")
    out.print(f"Numbers: {folder / 'metrics.json'} and {folder / 'tables'}")
    out.print("Next:    open the report; try your own persona with --persona my_pairs.csv")
    for vector in list(result.metrics["vectors"].values())[:1]:
        out.print(
            f'         or: saesteer generate --vector {vector} --strength 0.2 "How was your day?"'
        )
