"""The report of a probe run: scores by layer, or by number of SAE features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report import plots
from saesteer.report.layout import Column, Figure, Remark, Section, Table, Tile
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
    read, where = 'saesteer probe read {folder} "I am feeling happy today"', "sparse"
    commands = [read, 'saesteer probe intervene {folder} "What a day! I feel"']
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
        row = {"layer": record["layer"], "site": record["site"], "c": record["c"]}
        for name in SCORES:
            row |= {name: record[name]["value"]}
            row |= {f"{name}_{end}": record[name][end] for end in ("low", "high")}
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
        Column("layer", partial(_layer, metrics), printed=True),
        Column("site", "site"),
        Column("C", "c"),
        Column("accuracy", lambda one: _estimate(one["accuracy"])),
        Column("macro-F1", lambda one: _estimate(one["macro_f1"]), printed=True),
        Column("AUROC", lambda one: _estimate(one["auroc"]), printed=True),
    ]
    if "control" in best:
        columns += [
            Column("control acc", lambda one: one["control"]["accuracy"]["value"], ".3f"),
            Column("control AUROC", lambda one: one["control"]["auroc"]["value"], ".3f", "", True),
            Column("selectivity", "selectivity", ".3f"),
        ]
    misses = []
    if "checks" in best:
        misses = best["checks"]["misses"]
        columns.append(Column("checks", lambda one: _checks(one, "/"), printed=True))
    missed = Table.of(
        misses,
        [
            Column("text", "text", printed=True),
            Column("is", "label", printed=True),
            Column("read as", "predicted", printed=True),
        ],
        f"Plain cases that layer {metrics['best']} misses",
    )
    return [
        Section(
            "Layers",
            "The best layer (*) is chosen by cross-validation on the training texts; control: the "
            "same on shuffled labels. Intervals are of 95% over the test texts.",
            [
                Figure("scores", "Scores by layer", partial(_score_figure, metrics)),
                Table.of(records, columns, most=len(records)),
                *([missed] if misses else []),
            ],
        ),
        Section(
            "Confusion",
            "Rows are the true class, columns the predicted one; colours are shares of a row.",
            [
                Figure(
                    "confusion",
                    "Confusion matrix of every layer",
                    partial(confusion_figure, metrics),
                )
            ],
        ),
    ]


def _layer(metrics: Metrics, record: Metrics) -> int | str:
    return f"*{record['layer']}" if record["layer"] == metrics["best"] else record["layer"]


def _checks(record: Metrics, of: str) -> str:
    return f"{record['checks']['right']}{of}{record['checks']['n']}"


def _score_figure(metrics: Metrics) -> Drawing:
    records = metrics["layers"]
    series = []
    for name, label in SCORES.items():
        scores = [record[name] for record in records]
        value, low, high = ([one[key] for one in scores] for key in ("value", "low", "high"))
        layers = [record["layer"] for record in records]
        series.append(plots.Series(label, value, layers, low, high))
    return plots.lines(series, x_title="layer", y_title="score on test texts")


def _codes(metrics: Metrics) -> list[Section]:
    if not metrics.get("sae"):
        return []
    probes = [*metrics["sparse"], {"kind": "residual", "n_features": None, **metrics["residual"]}]
    features = metrics["features"]
    return [
        Section(
            "SAE features",
            f"Probes on the codes of {metrics['sae']} at {metrics['site']}.",
            [
                Table.of(
                    probes,
                    [
                        Column("probe", lambda one: SPARSE[one["kind"]], printed=True),
                        Column("features", "n_features", printed=True),
                        *SCORED,
                    ],
                ),
                Table.of(
                    features,
                    [
                        Column("feature", "feature", printed=True),
                        Column("F", "f", ".0f", printed=True),
                        Column("fires most on", "class", printed=True),
                        Column("description", "description", printed=True),
                    ],
                    links=[record["url"] or "" for record in features],
                ),
            ],
        )
    ]


def _judge(metrics: Metrics) -> list[Section]:
    judge = metrics["judge"]
    if not judge:
        return []
    about = f"MiniLM, trained on {judge['n_train']:,} texts that no probe saw."
    return [Section("Independent classifier", about, [Table.of([judge], SCORED)])]


def _estimate(score: Mapping[str, Any]) -> Estimate:
    return Estimate(score["value"], score["low"], score["high"])


SCORED = [
    Column("accuracy", lambda one: _estimate(one["accuracy"]), printed=True),
    Column("macro-F1", lambda one: _estimate(one["macro_f1"]), printed=True),
]
