"""The report of a steering run: the effect beside baseline and null, the features, the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

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
    Verdict,
    estimate,
)
from saesteer.report.report import Report
from saesteer.report.wording import Estimate, between, show

Metrics = Mapping[str, Any]
MEASURED = ("measure", "value")
MEANING = (
    "E: how far the margin between matching and non-matching statements moves, nats per token; "
    "moved: share of the pairs that move that way; common: what moves both statements alike"
)


class Vector(NamedTuple):
    """A vector that was measured."""

    colour: str
    record: Metrics

    @property
    def label(self) -> str:
        """What its method is called."""
        return method_entry(self.record["method"]).label

    @property
    def effect(self) -> Estimate:
        """What it does to the held-out pairs."""
        found = self.record["effect"]
        return Estimate(None) if found is None else estimate("effect")(found)

    @property
    def mark(self) -> Mark:
        """Its method with its colour."""
        return Mark(self.label, self.colour)


def steer_report(
    metrics: Metrics,
    config: Metrics,
    features: Sequence[Metrics],
    completions: Sequence[Metrics],
    *,
    n_pairs: int,
    site: str,
) -> Report:
    """Return a run's report, of what its files hold."""
    kl_target = config["evaluation"]["kl_target"]
    own = Vector(plots.HEADLINE, metrics["vector"])
    baseline = Vector(plots.BASELINE, metrics["difference_in_means"])
    curves = [(own, metrics["curve"]), (baseline, metrics["curve_difference_in_means"])]
    # Once where the run's own method is its baseline.
    same = own.record["method"] == baseline.record["method"]
    shown = [own] if same else [own, baseline]
    minus, plus = (own.record[side]["strength"] for side in ("minus", "plus"))
    # Runs of earlier versions have neither.
    texts, strengths = metrics.get("texts"), metrics.get("strengths")
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
        remarks=[*_remarks(own, baseline, metrics), *_said_of_texts(texts, completions)],
        tiles=_tiles(shown, metrics, kl_target),
        sections=[
            Section(
                f"Propensity on {n_pairs} held-out pairs, every vector at KL {kl_target:g} per "
                "token on neutral text",
                items=_effect([own, baseline], shown, metrics),
            ),
            Section(
                "Margin by strength",
                "The mean margin between matching and non-matching held-out statements, at "
                "multiples of the strength that meets the KL target, each sign its own.",
                _margins(curves, len(shown), metrics["unsteered_margin"]),
            ),
            *_judged(shown, texts),
            *_texts(completions),
            _features(metrics, features, site),
            *_strengths(strengths, kl_target),
            _run(metrics["seconds"]),
        ],
        beside=("vector.safetensors", "features.parquet"),
        commands=[f"saesteer generate --vector {{folder}} {generate}", "saesteer app {folder}"],
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


def _remarks(own: Vector, baseline: Vector, metrics: Metrics) -> list[Remark]:
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
    ours, other = own.effect.value, baseline.effect.value
    same = own.label == baseline.label
    if not same and ours is not None and other is not None and ours <= other:
        moved = f"moves it by {show(other, '.3f')} at the same KL, no less than {own.label}."
        text = f"{baseline.label} {moved}"
        said.append(Remark(f"{text[0].upper()}{text[1:]}", "open"))
    word = "monotone" if metrics["monotone"] else "NOT monotone"
    steps = "; ".join(
        f"{show(row['strength'], '+.2f')}: {show(row['margin'], '+.3f')}"
        for row in metrics["curve"]
    )
    verdict = "good" if metrics["monotone"] else "open"
    return [*said, Remark(f"Margin by strength ({word}): {steps}", verdict)]


def _tiles(vectors: Sequence[Vector], metrics: Metrics, kl_target: float) -> list[Tile]:
    tiles = []
    for name, vector in zip(("Effect E", "Baseline's E"), vectors, strict=False):
        value, low, high = vector.effect
        about = f"{between(low, high, '.3f')} nats per token at KL {kl_target:g}, {vector.label}"
        tiles.append(Tile(name, show(value, ".3f"), about))
    texts = metrics.get("texts")
    if texts is not None and texts["vector"]["judge_range"] is not None:
        own = texts["vector"]
        about = f"{between(own['low'], own['high'])} of the distance between answers of known sides"
        tiles.append(Tile("Texts apart", show(own["judge_range"]), about))
    if (null := metrics["null"]) is not None:
        about = f"largest |E| of {null['reached']} random directions that met the KL target"
        tiles.append(Tile("Random null", show(null["largest"], ".3f"), about))
    n_features = str(metrics["fit"]["features"])
    return [*tiles, Tile("SAE features", n_features, "that the vector is made of")][:4]


def _features(metrics: Metrics, features: Sequence[Metrics], site: str) -> Section:
    fit = metrics["fit"]
    if not features:
        measured = [{"measure": "cosine to the mean delta", "value": fit["cosine_to_mean_delta"]}]
        table = Table.of(measured, MEASURED, printed=True)
        return Section(f"A dense vector at {site}, of no SAE features", items=[table])
    cosine = f"osine to the mean delta {show(fit['cosine_to_mean_delta'], '.3f')}."
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
    if (elsewhere := fit["features"] - len([row for row in features if row["weight"]])) > 0:
        about += f" {elsewhere} more are of its parts; saesteer vector show lists them."
    colours = cluster_colours([row["cluster"] for row in features])
    items = [feature_table([row for row in features if row["weight"]], colours, note=note)]
    if "silhouette" in fit:
        tried = [{"clusters": int(k), "silhouette": v} for k, v in fit["silhouette"].items()]
        numbers = {**fit["details"], "mean residual norm": fit["mean_residual_norm"]}
        measured = [{"measure": name, "value": value} for name, value in numbers.items()]
        items += [
            Table.of(tried, ("clusters", "silhouette"), "Clusters tried", folded=True),
            Table.of(measured, MEASURED, "The fit in numbers", folded=True),
        ]
    return Section(f"{fit['features']} features at {site}", about, items)


def completion_texts(records: Sequence[Metrics]) -> list[Texts]:
    """Return completions by prompt, a column for each strength."""
    prompts: dict[str, dict[str, list[Said]]] = {}
    for record in records:
        columns = prompts.setdefault(record["prompt"], {})
        columns.setdefault(_strength(record), []).append(Said(record["text"]))
    return [
        Texts(prompt, {"": columns}, opened=place < 2, printed=True)
        for place, (prompt, columns) in enumerate(prompts.items())
    ]


def _strength(record: Metrics) -> str:
    amount = f"{record['strength']:+.3g}" if record["strength"] else "0"
    return f"strength {amount}" + ("" if record["unit"] == "norm" else f" {record['unit']}")


def _texts(completions: Sequence[Metrics]) -> list[Section]:
    about = "Completions of neutral questions at the matched strengths and without steering."
    items = completion_texts(completions)
    return [Section("What the model writes", about, items)] if items else []


def _said_of_texts(texts: Metrics | None, completions: Sequence[Metrics]) -> list[Remark]:
    """Return what the judge lets one say of what the model writes."""
    if texts is None:
        if not completions:
            return []
        text = (
            "No judge reads what is written, because these pairs have no answers of known sides "
            "(pairs.answers), so nothing is claimed of it."
        )
        return [Remark(text, "open")]
    (judge,) = texts["judges"]
    proof = f"sorts such answers with AUC {show(judge['auc'])}"
    if judge["verdict"] == "not admitted":
        text = f"The judge of texts {proof} and is not admitted, so nothing is claimed of them."
        return [Remark(text, "open")]
    own, means, gain = (texts[name] for name in ("vector", "difference_in_means", "gain"))
    if own["judge_range"] is None or gain is None:
        return [Remark("KL was not reached both ways, so no texts are compared.", "open")]
    word, verdict = _verdict(gain["low"], gain["high"])
    ends = between(gain["low"], gain["high"], "+.2f")
    text = (
        f"What it writes either way lies {_apart(own)} of the distance between answers of known "
        f"sides apart, AUC {show(own['auc'])}; difference in means: {_apart(means)}, "
        f"{show(gain['mean'], '+.2f')} between them ({ends}): {word}. The judge, "
        f"{judge['verdict']}, {proof}."
    )
    return [Remark(text, verdict)]


def _apart(summary: Metrics) -> str:
    """Return how far the signs lie apart, with its interval."""
    ends = between(summary["low"], summary["high"])
    return f"{show(summary['judge_range'])} ({ends})" if ends else show(summary["judge_range"])


def _verdict(low: float, high: float) -> tuple[str, Verdict]:
    if low > 0:
        return "more than difference in means", "good"
    return ("less than difference in means", "bad") if high < 0 else ("no clear difference", "open")


def _judged(vectors: Sequence[Vector], texts: Metrics | None) -> list[Section]:
    """Return how far the judge reads the signs of each vector apart."""
    if texts is None:
        return []
    columns = (
        Column("vector", lambda row: row[0].mark),
        Column("apart (95%)", lambda row: estimate("judge_range")(row[1]), ".2f"),
        Column("AUC (95%)", lambda row: estimate("auc", "auc_low", "auc_high")(row[1]), ".2f"),
        *(
            Column(name, partial(_reading, sign=sign), "+.2f")
            for name, sign in (("towards", 1), ("plain", 0), ("away", -1))
        ),
    )
    rows = list(zip(vectors, (texts["vector"], texts["difference_in_means"]), strict=False))
    (judge,) = texts["judges"]
    note = (
        f"Read by {judge['judge']}, {judge['verdict']} (AUC {show(judge['auc'])} on answers of "
        "known sides); intervals are over questions. Apart: 1 is as far as such answers lie; AUC: "
        "the chance that a text towards reads higher than one away."
    )
    table = Table.of(rows, columns, printed=True, note=note)
    title = f"Judged text: {texts['n_questions']} questions at the same KL"
    return [Section(title, items=[table])]


def _reading(row: tuple[Vector, Metrics], sign: int) -> float | None:
    return next((one["judge"] for one in row[1]["signs"] if one["sign"] == sign), None)


def _strengths(strengths: Sequence[Metrics] | None, kl_target: float) -> list[Section]:
    """Return the strength to use, in all units."""
    if strengths is None:
        return []
    columns = ("way", "norm:+.3f", "raw:+.2f", "max_act:+.3f", "KL=kl:.3f")
    rows = [{**row, "kl": row["kl"] if row["reached"] else None} for row in strengths]
    note = (
        "norm: times the mean residual norm; raw: the length itself; max_act: times the length "
        "with every feature at its measured maximum (--unit)"
    )
    table = Table.of(rows, columns, printed=True, note=note)
    return [Section(f"The strength for KL {kl_target:g} per token", items=[table])]


def _effect(vectors: Sequence[Vector], shown: Sequence[Vector], metrics: Metrics) -> list[Any]:
    measures = (
        *("strength -/+=strength", "KL -/+=kl", "effect E (95% over pairs)=effect:+.3f"),
        *("moved:.0%", "common:+.2f"),
    )
    rows = [{"vector": one.mark, **_cells(one)} for one in vectors]
    if (null := metrics["null"]) is not None:
        who = Mark(f"{null['n']} random directions", plots.NULL)
        nothing = dict.fromkeys(("strength", "kl", "moved", "common"))
        rows.append({"vector": who, **nothing, "effect": f"|E| <= {null['largest']:.3f}"})
    drawn = [Vector(plots.NULL, record) for record in metrics["random_directions"]]
    draws = [one.effect.value for one in drawn if one.effect.value is not None]
    draw = partial(
        plots.forest,
        [one.label for one in shown],
        [
            # A row of its own each; the other rows hold nothing.
            plots.Dots(
                one.label,
                *zip(*(one.effect if one is row else Estimate(None) for row in shown), strict=True),
                colour=one.colour,
            )
            for one in shown
        ],
        null=[draws] * len(shown),
        x_title="effect E at equal KL, nats per token",
    )
    items = [
        Figure("effect", "Effects beside the random null", draw),
        Table.of(rows, ("vector", *measures), printed=True, note=MEANING),
    ]
    if drawn:
        rows = [{"random direction": one.record["name"], **_cells(one)} for one in drawn]
        columns = ("random direction", *measures)
        items.append(Table.of(rows, columns, "Every random direction", folded=True))
    return items


def _cells(vector: Vector) -> dict[str, Any]:
    minus, plus, effect = (vector.record[name] for name in ("minus", "plus", "effect"))
    return {
        "strength": f"{show(minus['strength'], '+.2f')} {show(plus['strength'], '+.2f')}",
        "kl": f"{show(minus['kl'])} {show(plus['kl'])}",
        "effect": "KL not reached" if effect is None else vector.effect,
        "moved": effect and effect["moved_share"],
        "common": effect and effect["common_shift"],
    }


def _margins(
    curves: Sequence[tuple[Vector, Sequence[Metrics]]], n_drawn: int, unsteered: float
) -> list[Any]:
    series = [
        plots.Series(
            vector.label,
            [row["margin"] for row in curve],
            [row["multiple"] for row in curve],
            colour=vector.colour,
        )
        for vector, curve in curves[:n_drawn]
    ]
    draw = partial(
        plots.lines,
        # The run's own comes last, so that it lies on top.
        series[::-1],
        x_title="multiple of the strength at the KL target",
        y_title="margin, nats per token",
        level=("unsteered", unsteered),
    )
    rows = [{"vector": vector.mark, **row} for vector, curve in curves for row in curve]
    columns = ("vector", "multiple", "strength:+.3f", "margin:+.3f")
    return [
        Figure("margin", "Margin by strength", draw),
        Table.of(rows, columns, "Every point", folded=True),
    ]


def _run(seconds: Mapping[str, float]) -> Section:
    rows = [{"stage": stage, "seconds": value} for stage, value in seconds.items()]
    about = f"Computed in {sum(seconds.values()):.0f} s."
    return Section("The run", about, [Table.of(rows, ("stage", "seconds:.1f"))])
