"""What commands print besides reports: plans of experiments, and completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saesteer.report import Table
from saesteer.report.steer import completion_texts
from saesteer.report.terminal import console, print_texts, show_plan

if TYPE_CHECKING:
    from saesteer.experiments.compare.plan import ComparePlan
    from saesteer.experiments.steer.experiment import Steer
    from saesteer.utils.terminal import Console


def show_completions(records: Sequence[Mapping[str, Any]], out: Console | None = None) -> None:
    """Print completions by prompt, as `GenerationResult.to_dicts` gives them."""
    for texts in completion_texts(records):
        print_texts(out or console(), texts)


def show_steer_plan(experiment: Steer) -> None:
    """Print what a run would do."""
    plan, config = experiment.plan, experiment.plan.config
    split, to_do = plan.split, experiment.pending()
    stages = [f"{s.name} ({'to do' if s in to_do else 'done'})" for s in experiment.stages()]
    evaluation = config.evaluation
    show_plan(
        {
            "pairs": f"{len(plan.pairs)} of {plan.pairs.source}: {len(split.train)} to train, "
            f"{len(split.validation)} to validate, {len(split.test)} to test",
            "model": str(plan.model),
            "SAE": plan.sae if not isinstance(plan.sae, tuple) else ":".join(plan.sae),
            "method": _method_line(config),
            "evaluation": f"{len(plan.held_out)} held-out pairs at KL {evaluation.kl_target}, "
            f"{evaluation.random_directions} random directions",
            "stages": ", ".join(stages),
        },
        plan.folder,
    )


def _method_line(config: Any) -> str:
    from saesteer.experiments.steer.config import CLUSTERED
    from saesteer.methods.registry import method_entry

    label = method_entry(config.method.name).label
    settings = ", ".join(f"{name} {value}" for name, value in config.method.settings.items())
    if config.method.name == CLUSTERED:
        settings = (
            f"{config.selection.n_features} by {config.selection.criterion}, "
            f"{config.clustering.method} clusters, {config.regression.method} weights"
        )
    return f"{label}: {settings}" if settings else label


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


def show_measure_plan(experiment: Any) -> None:
    """Print what a public measure would do."""
    config, pending = experiment.config, experiment.pending()
    show_plan(
        {
            "name": config.name,
            "data": config.source,
            "model": experiment.plan.model.name,
            "SAE": config.sae or "none",
            "methods": ", ".join(method.name for method in config.methods),
            "parts": f"{len(experiment.stages())}, of which {len(pending)} are to do",
        },
        experiment.folder.path,
    )
