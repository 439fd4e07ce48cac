"""What `saesteer compare --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saesteer.report import Table
from saesteer.report.terminal import show_plan

if TYPE_CHECKING:
    from saesteer.experiments.compare.plan import ComparePlan


def show_compare_plan(plan: ComparePlan) -> None:
    """Print what a comparison would do."""
    config, null = plan.config, plan.config.random
    rows = []
    for persona in plan.personas:
        split = persona.splits[config.seeds[0]]
        sizes = [len(part) for part in (split.train, split.validation, split.test)]
        rows.append([persona.name, *sizes, "yes" if persona.done else "no"])
    show_plan(
        {
            "name": config.name,
            "model": f"{plan.model.name} with SAE {config.sae}",
            "methods": ", ".join(method.name for method in config.methods),
            "KL targets": ", ".join(map(str, config.evaluation.kl_targets)),
            "seeds": ", ".join(map(str, config.seeds)),
            "chance": f"null of {null.directions} directions and {null.features} feature sets",
        },
        plan.folder,
        [Table(["persona", "train", "validation", "test", "done"], rows, most=len(rows))],
    )
