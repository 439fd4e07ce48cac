"""The report of a probe run: scores by layer, or by number of SAE features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report import plots
from saesteer.report.layout import Column, Figure, Remark, Section, Table, Tile, estimate
from saesteer.report.report import Report
from saesteer.report.wording import Estimate, show

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure as Drawing

Metrics = Mapping[str, Any]
COLUMNS = 6
SCORES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC"}
SPARSE = {
    "k_sparse": "k strongest",
    "l1": "L1",
    "all": "all, L2 at C = 1",
    "residual": "residual stream",
}


def probe_report(metrics: Metrics) -> Report:
    """Return a run's report."""
    sparse = bool(metrics.get("sae"))
    read, where = 'saesteer probe read {folder} "A text of your own"', "sparse"
    commands = [read, 'saesteer probe intervene {folder} "Today I"']
    return Report(
        kind="probes",
        title=str(metrics["name"]),
        lead=(
            f"{metrics['model']} on {metrics['source']}: {metrics['n_train']:,} texts to train, "
            f"{metrics['n_test']:,} to test; classes {', '.join(metrics['classes'])}."
        ),
        facts={"model": metrics["model"], "read at": metrics["positions"], "best": metrics["best"]},
        remarks=_remarks(metrics),
        tiles=_tiles(metrics),
        sections=[*_layers(metrics), *_codes(metrics), *_judge(metrics)],
        beside=(where,) if sparse else ("layers.csv",),
        commands=["saesteer vector show {folder}/sparse/FILE"] if sparse else commands,
    )


def layer_table(metrics: Metrics) -> pd.DataFrame:
    """Return one row per layer with its scores and intervals."""
    import pandas as pd

    rows = []
    for record in metrics["layers"]:
        row = {name: record[name] for name in ("layer", "site", "c")}
        for name in SCORES:
            score = record[name]
            row |= {
                name: score["value"],
                f"{name}_low": score["low"],
                f"{name}_high": score["high"],
            }
        if "control" in record:
            row["control_accuracy"] = record["control"]["accuracy"]["value"]
            row["control_auroc"] = record["control"]["auroc"]["value"]
            row["selectivity"] = record["selectivity"]
        if "checks" in record:
            row["checks"] = record["checks"]["right"] / record["checks"]["n"]
        rows.append(row)
    return pd.DataFrame(rows).set_index("layer")


def confusion_figure(metrics: Metrics) -> Drawing:
    """Draw every layer's confusion matrix, rows true and columns predicted."""
    titles = [
        f"layer {record['layer']}: F1 {show(record['macro_f1']['value'])}"
        for record in metrics["layers"]
    ]
    counts = [np.array(record["confusion"]) for record in metrics["layers"]]
    return plots.confusions(counts, titles, short_names(metrics["classes"]), columns=COLUMNS)


def short_names(classes: Sequence[str]) -> list[str]:
    """Return the shortest beginnings, three letters or more, that tell the classes apart."""
    for length in range(3, max(map(len, classes)) + 1):
        short = [name[:length] for name in classes]
        if len(set(short)) == len(classes):
            return short
    return list(classes)


def _remarks(metrics: Metrics) -> list[Remark]:
    if not metrics.get("sae"):
        return []
    needed = f"{metrics['needed']} features" if metrics["needed"] else "more features than tried"
    said = f"95% of the residual stream's macro-F1 at {metrics['site']} takes {needed}."
    return [Remark(said, "good" if metrics["needed"] else "open")]


def _tiles(metrics: Metrics) -> list[Tile]:
    tiles = []
    for record in metrics["layers"]:
        if record["layer"] == metrics["best"]:
            about = f"layer {record['layer']}, the best by cross-validation"
            tiles += [Tile(word, show(record[k]["value"]), about) for k, word in SCORES.items()]
            if "checks" in record:
                tiles.append(Tile("Plain cases", _checks(record, " of "), "read rightly"))
    return tiles


def _layers(metrics: Metrics) -> list[Section]:
    records = metrics["layers"]
    if not records:
        return []
    best = next(record for record in records if record["layer"] == metrics["best"])
    columns = [
        Column("layer", lambda one: f"*{one['layer']}" if one is best else one["layer"]),
        *("site", "C=c"),
        *(Column(label, _estimate(name)) for name, label in SCORES.items()),
    ]
    printed = ["layer", "macro-F1", "AUROC"]
    if "control" in best:
        columns += [
            Column("control acc", lambda one: one["control"]["accuracy"]["value"], ".3f"),
            Column("control AUROC", lambda one: one["control"]["auroc"]["value"], ".3f"),
            "selectivity:.3f",
        ]
        printed.append("control AUROC")
    missed = []
    if "checks" in best:
        columns.append(Column("checks", lambda one: _checks(one, "/")))
        printed.append("checks")
        misses, words = best["checks"]["misses"], ("text", "is=label", "read as=predicted")
        caption = f"Plain cases that layer {metrics['best']} misses"
        missed = [Table.of(misses, words, caption, printed=True)] if misses else []
    note = "best layer (*) by cross-validation; control: the same on shuffled labels"
    layers = [record["layer"] for record in records]
    series = [
        plots.Series(label, value, layers, low, high)
        for name, label in SCORES.items()
        for value, low, high in [zip(*map(_estimate(name), records), strict=True)]
    ]
    draw = partial(plots.lines, series, x_title="layer", y_title="score on test texts")
    confusion = partial(confusion_figure, metrics)
    return [
        Section(
            "Layers",
            "The best layer (*) is chosen by cross-validation on the training texts; control: the "
            "same on shuffled labels. Intervals are of 95% over the test texts.",
            [
                Figure("scores", "Scores by layer", draw),
                Table.of(records, columns, printed=printed, most=len(records), note=note),
                *missed,
            ],
        ),
        Section(
            "Confusion",
            "Rows are the true class, columns the predicted one; colours are shares of a row.",
            [Figure("confusion", "Confusion matrix of every layer", confusion)],
        ),
    ]


def _checks(record: Metrics, of: str) -> str:
    return f"{record['checks']['right']}{of}{record['checks']['n']}"


def _codes(metrics: Metrics) -> list[Section]:
    if not metrics.get("sae"):
        return []
    probes = [*metrics["sparse"], {"kind": "residual", "n_features": None, **metrics["residual"]}]
    kind = Column("probe", lambda one: SPARSE[one["kind"]])
    features = metrics["features"]
    columns = ("feature", "F=f:.0f", "fires most on=class", "description")
    links = [record["url"] or "" for record in features]
    return [
        Section(
            "SAE features",
            f"Probes on the codes of {metrics['sae']} at {metrics['site']}.",
            [
                Table.of(probes, (kind, "features=n_features", *SCORED), printed=True),
                Table.of(features, columns, printed=True, links=links),
            ],
        )
    ]


def _judge(metrics: Metrics) -> list[Section]:
    judge = metrics["judge"]
    if not judge:
        return []
    about = f"MiniLM, trained on {judge['n_train']:,} texts that no probe saw."
    table = Table.of([judge], SCORED, printed=True)
    return [Section("Independent classifier", about, [table])]


def _estimate(name: str) -> Callable[[Metrics], Estimate]:
    """Return what takes a score with its interval out of a record."""
    return lambda record: estimate("value")(record[name])


SCORED = [Column(SCORES[name], _estimate(name)) for name in ("accuracy", "macro_f1")]
