"""The reports of public measures: steering-bench and AxBench's concept detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from saesteer.report import plots
from saesteer.report.layout import Column, Figure, Remark, Section, Table, estimate
from saesteer.report.report import Report
from saesteer.report.wording import listing, show

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

Metrics = Mapping[str, Any]
Row = Mapping[str, Any]
SLOPE = estimate("slope")
AUROC, AUROC_HARD = (estimate(n, f"{n}_low", f"{n}_high") for n in ("auroc", "auroc_hard"))
DISTRIBUTIONS = {"in": "in distribution", "out": "out of distribution"}
ANTI = "share of samples with a slope below 0"
DOCS = "What is comparable with published figures, and what is not, says docs/measures.md."


def steering_bench_report(metrics: Metrics) -> Report:
    """Return the report of a measurement on steering-bench."""
    labels, rows = _labels(metrics), metrics["summary"]
    own = {(row["method"], row["distribution"]): row for row in rows}
    names = [name for name in labels if own[name, "in"]["slope"] is not None]
    best = max(names, key=lambda name: own[name, "in"]["slope"], default=None)
    n = len(metrics["datasets"])
    over = "one dataset" if n == 1 else f"{n} datasets"
    lead = f"No method could be fitted to {over}."
    if best is not None:
        row = own[best, "in"]
        lead = (
            f"Over {over} {labels[best]} has the largest slope: {show(row['slope'])} nats of "
            f"the letters' logit difference for a multiplier of 1; {row['anti_steerable']:.0%} of "
            "samples move against the strength."
        )
    columns = [
        Column("method", lambda name: labels[name]),
        Column("slope", lambda name: SLOPE(own[name, "in"]), ".2f", "nats for a multiplier of 1"),
        Column("anti", lambda name: own[name, "in"]["anti_steerable"], ".0%", ANTI),
        Column("other prompts", lambda name: SLOPE(own[name, "out"]), ".2f", "slope there"),
        Column("anti there", lambda name: own[name, "out"]["anti_steerable"], ".0%", ANTI),
        Column("KL", lambda name: own[name, "in"]["kl"], ".2f", "at multipliers -1 and 1"),
    ]
    by_dataset = [
        "dataset",
        Column("method", lambda row: labels[row["method"]]),
        Column("prompts", lambda row: DISTRIBUTIONS[row["distribution"]]),
        Column("slope", SLOPE),
        Column("anti-steerable", lambda row: row["anti_steerable"], ".0%"),
    ]
    note = (
        "Every vector has the length of the difference in means, so that a multiplier is the same "
        "push for all; KL says what it costs on neutral answers. Other prompts ask for the persona "
        f"or its opposite; anti is the share of samples that move against the strength. {DOCS}"
    )
    figures = []
    if names:
        draw = partial(_slopes_figure, names, labels, own)
        figures = [Figure("slopes", "Slope by method, in and out of distribution", draw)]
    table = Table.of(list(labels), columns, printed=True, most=len(labels), note=note)
    every = Table.of(metrics["by_dataset"], by_dataset, "Every dataset", folded=True)
    return Report(
        kind="steering-bench",
        title=str(metrics["name"]),
        lead=lead,
        facts=_facts(metrics, datasets=n, multipliers=str(metrics["multipliers"])),
        remarks=[*_bench_remarks(metrics), *_not_fitted(metrics, "dataset", labels)],
        sections=[
            Section("Steerability", "Least-squares slopes.", [*figures, table]),
            Section("Dataset by dataset", "Intervals are over samples.", [every]),
        ],
        beside=("tables", "samples"),
        commands=["saesteer compare agreeableness"],
    )


def _bench_remarks(metrics: Metrics) -> list[Remark]:
    remarks = []
    asked = [one["name"] for one in metrics["datasets"] if not one["prompts"]]
    if asked:
        said = f"No prompts for a persona are known for {listing(asked)}"
        remarks.append(Remark(f"{said}: nothing is out of distribution there.", "open"))
    if metrics["left_out"]:
        files = listing(list(metrics["left_out"]))
        remarks.append(Remark(f"Left out, in another layout: {files}.", "open"))
    return remarks


def _slopes_figure(
    names: Sequence[str], labels: Mapping[str, str], own: Mapping[tuple[str, str], Row]
) -> Drawing:
    colours = {"in": (plots.HEADLINE, 0.15), "out": (plots.BASELINE, -0.15)}
    dots = []
    for distribution, (colour, shift) in colours.items():
        found = [SLOPE(own[name, distribution]) for name in names]
        value, low, high = zip(*found, strict=True)
        said = DISTRIBUTIONS[distribution]
        dots.append(plots.Dots(said, value, low, high, colour=colour, shift=shift))
    title = "slope of the logit difference, nats for a multiplier of 1"
    return plots.forest([labels[name] for name in names], dots, x_title=title)


def axbench_report(metrics: Metrics) -> Report:
    """Return the report of a measurement on AxBench's concepts."""
    labels, rows = _labels(metrics), metrics["summary"]
    there = [row for row in rows if row["auroc"] is not None]
    best = max(there, key=lambda row: row["auroc"], default=None)
    n = len(metrics["concepts"])
    of = "the one concept" if n == 1 else f"{n} concepts"
    lead = f"No method could be fitted to {of}."
    if best is not None:
        lead = (
            f"Of {of} {labels[best['method']]} tells texts with it from texts without best, at a "
            f"mean AUROC of {show(best['auroc'], '.3f')}."
        )
    columns = [
        Column("method", lambda row: labels[row["method"]]),
        Column("AUROC", AUROC, ".3f"),
        Column("against hard negatives", AUROC_HARD, ".3f"),
        Column("concepts", "auroc_concepts"),
    ]
    by_concept = [
        "concept",
        Column("method", lambda row: labels[row["method"]]),
        *("AUROC=auroc:.3f", "against hard negatives=auroc_hard:.3f", "features=n_features"),
    ]
    note = f"Of the largest reading over a text's tokens; intervals are over concepts. {DOCS}"
    figures = []
    if there:
        value, low, high = zip(*map(AUROC, there), strict=True)
        dots = [plots.Dots("AUROC", value, low, high)]
        names = [labels[row["method"]] for row in there]
        draw = partial(plots.forest, names, dots, x_title="AUROC of the largest reading")
        figures = [Figure("detection", "AUROC by method", draw)]
    table = Table.of(rows, columns, printed=True, most=len(rows), note=note)
    every = Table.of(metrics["by_concept"], by_concept, "Every concept", folded=True)
    return Report(
        kind="AxBench",
        title=str(metrics["name"]),
        lead=lead,
        facts=_facts(metrics, concepts=n),
        remarks=_not_fitted(metrics, "concept", labels),
        sections=[
            Section("Concept detection", "", [*figures, table]),
            Section("Concept by concept", "", [every]),
        ],
        beside=("tables", "concepts"),
        commands=["saesteer compare agreeableness"],
    )


def _labels(metrics: Metrics) -> dict[str, str]:
    return {method["name"]: method["label"] for method in metrics["methods"]}


def _facts(metrics: Metrics, **more: object) -> dict[str, object]:
    return {
        "model": metrics["model"],
        "SAE": metrics["sae"] or "none",
        "site": metrics["site"],
        **more,
    }


def _not_fitted(metrics: Metrics, what: str, labels: Mapping[str, str]) -> list[Remark]:
    """Say which methods gave no vector, and the first reason of each."""
    first: dict[str, Row] = {}
    counts: dict[str, int] = {}
    for row in metrics["not_fitted"]:
        first.setdefault(row["method"], row)
        counts[row["method"]] = counts.get(row["method"], 0) + 1
    return [
        Remark(
            f"{labels[name]} gave no vector for {counts[name]} {what}s: {row['not_fitted']}", "bad"
        )
        for name, row in first.items()
    ]
