"""The report of a steering run: the effect beside baseline and null, the features, the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from saesteer.methods.registry import method_entry
from saesteer.report import plots
from saesteer.report.features import cluster_colours, feature_table
from saesteer.report.layout import (
    Column,
    Figure,
    Mark,
    Remark,
    Said,
    Section,
    Table,
    Texts,
    Tile,
)
from saesteer.report.report import Report
from saesteer.report.wording import Estimate, between, show

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

Metrics = Mapping[str, Any]
MEASURED = {"vector": plots.HEADLINE, "difference_in_means": plots.BASELINE}
CURVES = {"vector": "curve", "difference_in_means": "curve_difference_in_means"}
MEANING = (
    "E: how far the margin between matching and non-matching statements moves, nats per token; "
    "moved: share of the pairs that move that way; common: what moves both statements alike"
)


def steer_report(
    metrics: Metrics,
    config: Mapping[str, Any],
    features: Sequence[Mapping[str, Any]],
    completions: Sequence[Mapping[str, Any]],
    *,
    n_pairs: int,
    site: str,
) -> Report:
    """Return a run's report.

    Args:
        metrics: Its `metrics.json`.
        config: Its `config.json`.
        features: The rows of `features.parquet`.
        completions: The rows of `completions.json`.
        n_pairs: Held-out pairs that effects are measured on.
        site: Where the vector is added.
    """
    kl_target = config["evaluation"]["kl_target"]
    steps = "; ".join(
        f"{show(row['strength'], '+.2f')}: {show(row['margin'], '+.3f')}"
        for row in metrics["curve"]
    )
    sides = (metrics["vector"][side]["strength"] for side in ("minus", "plus"))
    minus, plus = sides
    generate = f'--strength {minus:.2g} --strength 0 --strength {plus:.2g} "How was your day?"'
    return Report(
        kind="steering",
        title=str(config["name"]),
        lead=_lead(metrics, kl_target, n_pairs),
        facts={
            "model": config["model"]["name"],
            "SAE": config["sae"],
            "site": site,
            "method": _label(metrics, "vector"),
            "pairs": config["pairs"]["source"],
            "seed": config["seed"],
        },
        remarks=_remarks(metrics, steps),
        tiles=_tiles(metrics, kl_target),
        sections=[
            _effect(metrics, n_pairs, kl_target),
            Section(
                "Margin by strength",
                "The mean margin between matching and non-matching held-out statements, at "
                "multiples of the strength that meets the KL target, each sign its own.",
                [
                    Figure("margin", "Margin by strength", partial(margin_figure, metrics)),
                    _curve_table(metrics),
                ],
            ),
            *_texts(completions),
            _features(metrics, features, site),
            _run(metrics),
        ],
        beside=("vector.safetensors", "features.parquet"),
        commands=[f"saesteer generate --vector {{folder}} {generate}"],
    )


def margin_figure(metrics: Metrics) -> Drawing:
    """Draw the margin against the strength, of the run's own vector and of its baseline."""
    series = [
        plots.Series(
            _label(metrics, key),
            [row["margin"] for row in metrics[CURVES[key]]],
            [row["multiple"] for row in metrics[CURVES[key]]],
            colour=colour,
        )
        for key, colour in reversed(_measured(metrics).items())
    ]
    return plots.lines(
        series,
        x_title="multiple of the strength at the KL target",
        y_title="margin, nats per token",
        level=("unsteered", metrics["unsteered_margin"]),
    )


def effect_figure(metrics: Metrics) -> Drawing:
    """Draw the effects with their intervals over the range of the random null."""
    measured = _measured(metrics)
    dots = []
    for place, (key, colour) in enumerate(measured.items()):
        found = _estimate(metrics[key])
        column = [None] * len(measured)
        parts = [[*column[:place], end, *column[place + 1 :]] for end in found]
        dots.append(plots.Dots(_label(metrics, key), *parts, colour=colour))
    draws = [one["effect"]["effect"] for one in metrics["random_directions"] if one["effect"]]
    return plots.forest(
        [_label(metrics, key) for key in measured],
        dots,
        null=[draws] * len(measured),
        x_title="effect E at equal KL, nats per token",
    )


def _measured(metrics: Metrics) -> dict[str, str]:
    """Return what is measured, once where the run's own method is its baseline."""
    if metrics["vector"]["method"] == metrics["difference_in_means"]["method"]:
        return {"vector": plots.HEADLINE}
    return MEASURED


def _label(metrics: Metrics, key: str) -> str:
    return method_entry(metrics[key]["method"]).label


def _estimate(record: Metrics) -> Estimate:
    effect = record["effect"]
    if effect is None:
        return Estimate(None)
    return Estimate(effect["effect"], effect["low"], effect["high"])


def _lead(metrics: Metrics, kl_target: float, n_pairs: int) -> str:
    label, effect = _label(metrics, "vector"), _estimate(metrics["vector"])
    if effect.value is None:
        return f"With {label}, KL {kl_target:g} was not reached, so there is no effect to report."
    ends = between(effect.low, effect.high, ".3f")
    return (
        f"With {label}, the margin of {n_pairs} held-out pairs moves by "
        f"{show(effect.value, '.3f')} nats per token at KL {kl_target:g} (95% over pairs {ends})."
    )


def _remarks(metrics: Metrics, steps: str) -> list[Remark]:
    said = []
    effect, label, null = _estimate(metrics["vector"]), _label(metrics, "vector"), metrics["null"]
    if effect.value is not None and effect.low is not None:
        good = effect.low > 0
        word = "excludes 0" if good else "does not lie above 0: this does not show that it steers"
        said.append(Remark(f"The effect's interval over pairs {word}.", "good" if good else "bad"))
    if null is not None:
        verdict = "beyond all of" if null["beyond_all"] else "NOT beyond all of"
        text = (
            f"{label}: E is {verdict} {null['reached']} random directions at the same KL "
            f"(p = {null['p_value']:.3f})."
        )
        said.append(Remark(text, "good" if null["beyond_all"] else "bad"))
    word = "monotone" if metrics["monotone"] else "NOT monotone"
    said.append(
        Remark(f"Margin by strength ({word}): {steps}", "good" if metrics["monotone"] else "open")
    )
    return said


def _tiles(metrics: Metrics, kl_target: float) -> list[Tile]:
    tiles = []
    for key in _measured(metrics):
        found = _estimate(metrics[key])
        name = "Effect E" if key == "vector" else "Baseline's E"
        about = f"{between(found.low, found.high, '.3f')} nats per token at KL {kl_target:g}, "
        tiles.append(Tile(name, show(found.value, ".3f"), about + _label(metrics, key)))
    if (null := metrics["null"]) is not None:
        about = f"largest |E| of {null['reached']} random directions that met the KL target"
        tiles.append(Tile("Random null", show(null["largest"], ".3f"), about))
    tiles.append(
        Tile("SAE features", str(metrics["fit"]["features"]), "that the vector is made of")
    )
    return tiles


def _features(metrics: Metrics, features: Sequence[Mapping[str, Any]], site: str) -> Section:
    fit = metrics["fit"]
    cosine = f"osine to the mean delta {show(fit['cosine_to_mean_delta'], '.3f')}."
    if not features:
        title = f"A dense vector at {site}, of no SAE features"
        return Section(
            title,
            items=[
                Table(
                    ["measure", "value"],
                    [["cosine to the mean delta", fit["cosine_to_mean_delta"]]],
                    printed=("measure", "value"),
                )
            ],
        )
    note = f"C{cosine}"
    if "candidates" in fit:
        note = (
            f"{fit['candidates']} candidates, {fit['selected']} selected, {fit['clusters_kept']} "
            f"of {fit['clusters']} clusters kept; {fit['regression']} weights: R2 "
            f"{show(fit['r2_mean'], '.3f')} of the mean delta ({show(fit['r2'], '.3f')} over "
            f"single pairs), c{cosine} {fit['cluster_note']}"
        ).strip()
    about = (
        "The SAE features of the vector with the weight each adds. Features that fire together on "
        "the pairs share a cluster."
    )
    colours = cluster_colours([row["cluster"] for row in features])
    kept = [row for row in features if row["weight"]]
    items: list[Any] = [feature_table(kept, colours, note=note)]
    if "silhouette" in fit:
        rows = [[int(k), value] for k, value in fit["silhouette"].items()]
        items.append(Table(["clusters", "silhouette"], rows, "Clusters tried", folded=True))
        rows = [[name, value] for name, value in fit["details"].items()]
        rows.append(["mean residual norm", fit["mean_residual_norm"]])
        items.append(Table(["measure", "value"], rows, "The fit in numbers", folded=True))
    return Section(f"{fit['features']} features at {site}", about, items)


def completion_texts(records: Sequence[Mapping[str, Any]]) -> list[Texts]:
    """Return completions by prompt, a column for each strength."""
    texts = []
    for prompt in dict.fromkeys(record["prompt"] for record in records):
        columns: dict[str, list[Said]] = {}
        for record in records:
            if record["prompt"] == prompt:
                columns.setdefault(_strength(record), []).append(Said(record["text"]))
        texts.append(Texts(prompt, {"": columns}, opened=len(texts) < 2, printed=True))
    return texts


def _strength(record: Mapping[str, Any]) -> str:
    amount = f"{record['strength']:+.3g}" if record["strength"] else "0"
    return f"strength {amount}" + ("" if record["unit"] == "norm" else f" {record['unit']}")


def _texts(completions: Sequence[Mapping[str, Any]]) -> list[Section]:
    about = "Completions of neutral questions at the matched strengths and without steering."
    items = completion_texts(completions)
    return [Section("What the model writes", about, items)] if items else []


def _effect(metrics: Metrics, n_pairs: int, kl_target: float) -> Section:
    columns = ["vector", "strength -/+", "KL -/+", "effect E (95% over pairs)", "moved", "common"]
    rows: list[list[Any]] = []
    for key, colour in MEASURED.items():
        rows.append([Mark(_label(metrics, key), colour), *_measured_cells(metrics[key])])
    null = metrics["null"]
    if null is not None:
        rows.append(
            [
                Mark(f"{null['n']} random directions", plots.NULL),
                None,
                None,
                f"|E| <= {null['largest']:.3f}",
                None,
                None,
            ]
        )
    forms = {columns[3]: "+.3f", "moved": ".0%", "common": "+.2f"}
    table = Table(columns, rows, forms=forms, printed=columns, note=MEANING)
    draws = Table(
        ["random direction", *columns[1:]],
        [[one["name"], *_measured_cells(one)] for one in metrics["random_directions"]],
        "Every random direction",
        folded=True,
        forms=forms,
    )
    items: list[Any] = [
        Figure("effect", "Effects beside the random null", partial(effect_figure, metrics)),
        table,
    ]
    return Section(
        f"Propensity on {n_pairs} held-out pairs, every vector at KL {kl_target:g} per token on "
        "neutral text",
        items=[*items, draws] if draws.rows else items,
    )


def _measured_cells(record: Metrics) -> list[Any]:
    minus, plus, effect = record["minus"], record["plus"], record["effect"]
    cells: list[Any] = [
        f"{show(minus['strength'], '+.2f')} {show(plus['strength'], '+.2f')}",
        f"{show(minus['kl'])} {show(plus['kl'])}",
    ]
    if effect is None:
        return [*cells, "KL not reached", None, None]
    return [*cells, _estimate(record), effect["moved_share"], effect["common_shift"]]


def _curve_table(metrics: Metrics) -> Table:
    columns = [
        Column("vector", lambda row: Mark(_label(metrics, row["key"]), MEASURED[row["key"]])),
        Column("multiple", "multiple"),
        Column("strength", "strength", "+.3f"),
        Column("margin", "margin", "+.3f"),
    ]
    rows = [{"key": key, **row} for key, curve in CURVES.items() for row in metrics[curve]]
    return Table.of(rows, columns, "Every point", folded=True)


def _run(metrics: Metrics) -> Section:
    seconds = metrics["seconds"]
    rows = [[stage, value] for stage, value in seconds.items()]
    about = f"Computed in {sum(seconds.values()):.0f} s."
    return Section("The run", about, [Table(["stage", "seconds"], rows, forms={"seconds": ".1f"})])
