"""What commands print besides reports: vectors, features, completions, an SAE's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from saesteer.report import Table
from saesteer.report.features import cluster_colours, feature_table
from saesteer.report.layout import Column
from saesteer.report.steer import completion_texts
from saesteer.report.terminal import (
    console,
    grid,
    heading,
    one_line,
    print_fields,
    print_links,
    print_table,
    print_texts,
    show_plan,
)
from saesteer.report.wording import known

if TYPE_CHECKING:
    from saesteer.experiments.steer.experiment import Steer
    from saesteer.saes.doctor import DoctorReport
    from saesteer.steering import SteeringVector

# The names that other commands know these by.
table, show_links = grid, print_links
__all__ = ["console", "heading", "number", "one_line", "show_links", "show_plan", "table"]


def number(value: float | None, form: str) -> str:
    """Return a number in a format, or "none" where it could not be computed."""
    return format(value, form) if known(value) else "none"


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
            "model": f"{plan.model.name} ({plan.model.kind}: {plan.model.location})",
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


def show_vector(vector: SteeringVector, top: int = 32) -> None:
    """Print where a vector belongs, how long it is and what it is made of."""
    from saesteer.saes.labels import feature_url, noted_place

    out = console()
    lengths = {"residual norm": vector.residual_norm, "length at max_act": vector.max_act}
    rows = {
        "name": f"{vector.name} ({vector.method})",
        "site": vector.site,
        "model": f"{vector.model}, {vector.d_model} wide",
        "SAE": vector.sae or "none",
        "norm": f"{vector.norm:.4g}",
        **{name: "unknown" if value is None else f"{value:.4g}" for name, value in lengths.items()},
        "read at": vector.read_positions,
        "written at": vector.positions,
        "features": len(vector.features),
    }
    print_fields(out, rows)
    if not vector.features:
        return
    place = noted_place(vector.provenance)
    columns = [
        Column("feature", "index"),
        Column("weight", "weight", "+.3f"),
        Column("cluster", "cluster"),
        Column("description", "description"),
    ]
    rows = [asdict(feature) for feature in vector.features]
    links = [feature_url(place, row["index"]) or "" for row in rows]
    made = Table.of(rows, columns, links=links, most=top)
    out.print()
    print_table(out, made, where="the vector")


def show_features(features: Sequence[Mapping[str, Any]], top: int = 16) -> None:
    """Print features with weight, cluster and description, strongest first."""
    kept = [row for row in features if row["weight"]]
    colours = cluster_colours([row["cluster"] for row in kept])
    print_table(console(), feature_table(kept, colours, most=top), where="features.parquet")


def show_completions(records: Sequence[Mapping[str, Any]], out: Console | None = None) -> None:
    """Print completions by prompt, as `GenerationResult.to_dicts` gives them."""
    for texts in completion_texts(records):
        print_texts(out or console(), texts)


def show_doctor(report: DoctorReport, sae: str, model: str, site: str) -> None:
    """Print the doctor's figures."""
    from saesteer.report.sae import sae_report

    sae_report(report, sae, model, site).print(console())
