"""The report of a steering run: the effect beside baseline and null, the features, the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

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
    estimate,
)
from saesteer.report.report import Report
from saesteer.report.wording import Estimate, between, show

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

Metrics = Mapping[str, Any]
MEANING = (
    "E: how far the margin between matching and non-matching statements moves, nats per token; "
    "moved: share of the pairs that move that way; common: what moves both statements alike"
)


class Vector(NamedTuple):
    """A vector that was measured, with its margins over strengths."""

    colour: str
    record: Metrics
    curve: Sequence[Metrics]

    @property
    def label(self) -> str:
        """What its method is called."""
        return method_entry(self.record["method"]).label

    @property
    def effect(self) -> Estimate:
        """What it does to the held-out pairs."""
        found = self.record["effect"]
        return Estimate(None) if found is None else estimate("effect")(found)


def steer_report(
    metrics: Metrics,
    config: Mapping[str, Any],
    features: Sequence[Mapping[str, Any]],
    completions: Sequence[Mapping[str, Any]],
    *,
    n_pairs: int,
    site: str,
) -> Report:
    """Return a run's report, of what its files hold."""
    kl_target = config["evaluation"]["kl_target"]
    vectors = [
        Vector(plots.HEADLINE, metrics["vector"], metrics["curve"]),
        Vector(
            plots.BASELINE, metrics["difference_in_means"], metrics["curve_difference_in_means"]
        ),
    ]
    own = vectors[0]
    # Once where the run's own method is its baseline.
    shown = vectors[:1] if own.record["method"] == vectors[1].record["method"] else vectors
    minus, plus = (own.record[side]["strength"] for side in ("minus", "plus"))
    generate = f'--strength {minus:.2g} --strength 0 --strength {plus:.2g} "How was your day?"'
    return Report(
        kind="steering",
        title=str(config["name"]),
        lead=_lead(own, kl_target, n_pairs),
        facts={
            "model": config["model"]["name"],
            "SAE": config["sae"],
            "site": site,
            "method": own.label,
            "pairs": config["pairs"]["source"],
            "seed": config["seed"],
        },
        remarks=_remarks(own, metrics),
        tiles=_tiles(shown, metrics, kl_target),
        sections=[
            Section(
                f"Propensity on {n_pairs} held-out pairs, every vector at KL {kl_target:g} per "
                "token on neutral text",
                items=_effect(vectors, shown, metrics),
            ),
            Section(
                "Margin by strength",
                "The mean margin between matching and non-matching held-out statements, at "
                "multiples of the strength that meets the KL target, each sign its own.",
                [
                    Figure(
                        "margin",
                        "Margin by strength",
                        partial(_margin_figure, shown, metrics["unsteered_margin"]),
                    ),
                    _curve_table(vectors),
                ],
            ),
            *_texts(completions),
            _features(metrics, features, site),
            _run(metrics),
        ],
        beside=("vector.safetensors", "features.parquet"),
        commands=[f"saesteer generate --vector {{folder}} {generate}"],
    )


def _margin_figure(vectors: Sequence[Vector], unsteered: float) -> Drawing:
    series = [
        plots.Series(
            vector.label,
            [row["margin"] for row in vector.curve],
            [row["multiple"] for row in vector.curve],
            colour=vector.colour,
        )
        for vector in reversed(vectors)
    ]
    return plots.lines(
        series,
        x_title="multiple of the strength at the KL target",
        y_title="margin, nats per token",
        level=("unsteered", unsteered),
    )


def _effect_figure(vectors: Sequence[Vector], draws: Sequence[float]) -> Drawing:
    dots = []
    for vector in vectors:
        # A row of its own each; the other rows hold nothing.
        own = [vector.effect if other is vector else Estimate(None) for other in vectors]
        dots.append(plots.Dots(vector.label, *zip(*own, strict=True), colour=vector.colour))
    return plots.forest(
        [vector.label for vector in vectors],
        dots,
        null=[draws] * len(vectors),
        x_title="effect E at equal KL, nats per token",
    )


def _lead(own: Vector, kl_target: float, n_pairs: int) -> str:
    value, low, high = own.effect
    if value is None:
        return (
            f"With {own.label}, KL {kl_target:g} was not reached, so there is no effect to report."
        )
    return (
        f"With {own.label}, the margin of {n_pairs} held-out pairs moves by {show(value, '.3f')} "
        f"nats per token at KL {kl_target:g} (95% over pairs {between(low, high, '.3f')})."
    )


def _remarks(own: Vector, metrics: Metrics) -> list[Remark]:
    said, null, low = [], metrics["null"], own.effect.low
    if low is not None:
        word = (
            "excludes 0" if low > 0 else "does not lie above 0: this does not show that it steers"
        )
        said.append(
            Remark(f"The effect's interval over pairs {word}.", "good" if low > 0 else "bad")
        )
    if null is not None:
        verdict = "beyond all of" if null["beyond_all"] else "NOT beyond all of"
        text = (
            f"{own.label}: E is {verdict} {null['reached']} random directions at the same KL "
            f"(p = {null['p_value']:.3f})."
        )
        said.append(Remark(text, "good" if null["beyond_all"] else "bad"))
    word = "monotone" if metrics["monotone"] else "NOT monotone"
    steps = "; ".join(
        f"{show(row['strength'], '+.2f')}: {show(row['margin'], '+.3f')}" for row in own.curve
    )
    verdict = "good" if metrics["monotone"] else "open"
    return [*said, Remark(f"Margin by strength ({word}): {steps}", verdict)]


def _tiles(vectors: Sequence[Vector], metrics: Metrics, kl_target: float) -> list[Tile]:
    tiles = []
    for name, vector in zip(("Effect E", "Baseline's E"), vectors, strict=False):
        value, low, high = vector.effect
        about = f"{between(low, high, '.3f')} nats per token at KL {kl_target:g}, {vector.label}"
        tiles.append(Tile(name, show(value, ".3f"), about))
    if (null := metrics["null"]) is not None:
        about = f"largest |E| of {null['reached']} random directions that met the KL target"
        tiles.append(Tile("Random null", show(null["largest"], ".3f"), about))
    n_features = str(metrics["fit"]["features"])
    return [*tiles, Tile("SAE features", n_features, "that the vector is made of")]


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


def _effect(vectors: Sequence[Vector], shown: Sequence[Vector], metrics: Metrics) -> list[Any]:
    columns = ["vector", "strength -/+", "KL -/+", "effect E (95% over pairs)", "moved", "common"]
    rows = [[Mark(one.label, one.colour), *_cells(one)] for one in vectors]
    null = metrics["null"]
    if null is not None:
        who = Mark(f"{null['n']} random directions", plots.NULL)
        rows.append([who, None, None, f"|E| <= {null['largest']:.3f}", None, None])
    forms = {columns[3]: "+.3f", "moved": ".0%", "common": "+.2f"}
    drawn = [Vector(plots.NULL, record, ()) for record in metrics["random_directions"]]
    draws = [one.effect.value for one in drawn if one.effect.value is not None]
    figure = partial(_effect_figure, shown, draws)
    items: list[Any] = [
        Figure("effect", "Effects beside the random null", figure),
        Table(columns, rows, forms=forms, printed=columns, note=MEANING),
    ]
    if drawn:
        names = ["random direction", *columns[1:]]
        rows = [[one.record["name"], *_cells(one)] for one in drawn]
        items.append(Table(names, rows, "Every random direction", folded=True, forms=forms))
    return items


def _cells(vector: Vector) -> list[Any]:
    minus, plus, effect = (vector.record[name] for name in ("minus", "plus", "effect"))
    cells: list[Any] = [
        f"{show(minus['strength'], '+.2f')} {show(plus['strength'], '+.2f')}",
        f"{show(minus['kl'])} {show(plus['kl'])}",
    ]
    if effect is None:
        return [*cells, "KL not reached", None, None]
    return [*cells, vector.effect, effect["moved_share"], effect["common_shift"]]


def _curve_table(vectors: Sequence[Vector]) -> Table:
    columns = [
        Column("vector", lambda row: Mark(row["vector"].label, row["vector"].colour)),
        Column("multiple", "multiple"),
        Column("strength", "strength", "+.3f"),
        Column("margin", "margin", "+.3f"),
    ]
    rows = [{"vector": vector, **row} for vector in vectors for row in vector.curve]
    return Table.of(rows, columns, "Every point", folded=True)


def _run(metrics: Metrics) -> Section:
    seconds = metrics["seconds"]
    rows = [[stage, value] for stage, value in seconds.items()]
    about = f"Computed in {sum(seconds.values()):.0f} s."
    return Section("The run", about, [Table(["stage", "seconds"], rows, forms={"seconds": ".1f"})])
