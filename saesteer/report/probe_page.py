"""The page of a probe run: scores by layer, or by number of SAE features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesteer.report.probe_figures import confusion_figure, layer_table
from saesteer.report.reading import show
from saesteer.report.sheet import Drawing, Part, Sheet, Table

Metrics = Mapping[str, Any]


def probe_sheet(metrics: Metrics) -> Sheet:
    """Return a run's page.

    Args:
        metrics: Its `metrics.json`.
    """
    return Sheet(
        kind="probes",
        title=str(metrics["name"]),
        lead=(
            f"{metrics['model']} on {metrics['source']}: {metrics['n_train']:,} texts to train, "
            f"{metrics['n_test']:,} to test; classes {', '.join(metrics['classes'])}."
        ),
        facts={"model": metrics["model"], "read at": metrics["positions"], "best": metrics["best"]},
        parts=[*_layers(metrics), *_codes(metrics), *_judge(metrics)],
    )


def _layers(metrics: Metrics) -> list[Part]:
    if not metrics["layers"]:
        return []
    table = layer_table(dict(metrics)).reset_index()
    figure = Drawing(confusion_figure(dict(metrics)), "Confusion matrix of every layer")
    return [
        Part(
            "Layers",
            "The best layer is chosen by cross-validation on the training texts.",
            [figure, Table.of(table, "Scores with 95% intervals")],
        )
    ]


def _codes(metrics: Metrics) -> list[Part]:
    if not metrics.get("sae"):
        return []
    rows = [[r["kind"], r["n_features"], *_scored(r)] for r in metrics["sparse"]]
    rows.append(["residual stream", None, *_scored(metrics["residual"])])
    named = [[r["feature"], r["f"], r["class"], r["description"]] for r in metrics["features"]]
    links = [r["url"] or "" for r in metrics["features"]]
    return [
        Part(
            "SAE features",
            f"Probes on the codes of {metrics['sae']} at {metrics['site']}.",
            [
                Table(["probe", "features", "accuracy", "macro-F1", "95%"], rows),
                Table(["feature", "F", "fires most on", "description"], named, links=links),
            ],
        )
    ]


def _judge(metrics: Metrics) -> list[Part]:
    judge = metrics.get("judge")
    if not judge:
        return []
    about = f"Trained on {judge['n_train']:,} texts that no probe saw."
    columns = ["accuracy", "macro-F1", "95%"]
    return [Part("Independent classifier", about, [Table(columns, [_scored(judge)])])]


def _scored(record: Metrics) -> list[object]:
    f1 = record["macro_f1"]
    ends = "" if f1["low"] is None else f"{show(f1['low'], '.3f')} to {show(f1['high'], '.3f')}"
    return [record["accuracy"]["value"], f1["value"], ends]
