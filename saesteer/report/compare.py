"""The report of a comparison: headline, effect at equal cost, personas, methods, side effects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from saesteer.report import plots
from saesteer.report.compare_details import (
    choice_section,
    feature_section,
    side_effect_section,
    text_sections,
)
from saesteer.report.comparison import EFFECT, RATIO, Comparison, Method, average
from saesteer.report.layout import Bar, Column, Figure, Section, Table, Text, estimate
from saesteer.report.report import Report
from saesteer.report.wording import listing, spoken
from saesteer.saes.neuronpedia.links import SITE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

Metrics = Mapping[str, Any]
AREA = estimate("area")
EFFECT_MEANING = (
    "E: how far the margin between matching and non-matching held-out statements moves from the "
    "negative to the positive strength, halved, in nats per token; each method gets the same KL in "
    "each direction. Personas are the sample: intervals are from a bootstrap over personas, then "
    "pairs."
)


def compare_report(metrics: Metrics) -> Report:
    """Return the report of a comparison's `metrics.json`."""
    found = Comparison(metrics)
    vector = next(iter(metrics["vectors"].values()), None)
    commands = ["saesteer compare CONFIG --persona my_pairs.csv"]
    if vector is not None:
        commands.append(f'saesteer generate --vector {vector} --strength 0.2 "How was your day?"')
    embeds = any(
        str(row["url"]).startswith(f"{SITE}/")
        for rows in metrics["features"].values()
        for row in rows
    )
    return Report(
        kind="comparison",
        title=str(metrics["name"]),
        lead=found.lead(),
        facts={
            "model": metrics["model"],
            "SAE": metrics["sae"],
            "site": metrics["site"],
            "seeds": ", ".join(map(str, metrics["seeds"])),
            "KL targets": ", ".join(f"{target:g}" for target in found.kl_targets),
        },
        remarks=found.remarks(),
        tiles=found.tiles(),
        sections=[
            _methods(found),
            *_effects(found),
            _personas(found),
            feature_section(found, embeds=embeds),
            *text_sections(found),
            side_effect_section(found),
            choice_section(found),
            _run(found),
        ],
        beside=("tables",),
        commands=commands,
        frames=SITE if embeds else None,
    )


def _methods(found: Comparison) -> Section:
    at, metrics = found.at, found.metrics
    areas = {row["method"]: AREA(row) for row in metrics["areas"]}
    judged = {
        row["method"]: row["judge_range"]
        for row in metrics["generation_summary"]
        if row["kl_target"] in (at, None)
    }

    def mean(key: str, method: Method) -> float | None:
        return average(row[key] for row in found.effects(method.name, kl_target=at))

    def beyond(method: Method) -> str | None:
        row = found.summary[method.name, at]
        n = row["beyond_null"]
        return None if n is None else f"{n}/{row['n_personas']}"

    columns = [
        Column("method", lambda m: m.mark, printed=True),
        *(
            Column(
                f"E at KL {target:g}",
                lambda m, target=target: EFFECT(found.summary[m.name, target]),
                hint="the headline KL target" if target == at else "",
                printed=target == at,
            )
            for target in found.kl_targets
        ),
        Column(
            "area",
            lambda m: areas.get(m.name),
            hint="under E against log KL, over the log range, nats per token",
        ),
        Column("ratio to baseline", lambda m: RATIO(found.summary[m.name, at]), ".2f", "", True),
        Column(
            "p",
            lambda m: found.summary[m.name, at]["p_holm"],
            ".2g",
            "paired Wilcoxon over personas against the baseline, Holm's",
            printed=True,
        ),
        Column(
            "null",
            beyond,
            hint="personas where E exceeds every random draw at the same KL",
            printed=True,
        ),
        Column(
            "judge",
            lambda m: judged.get(m.name),
            ".2f",
            "range of the judge's logit over generated text, negative to positive",
            printed=True,
        ),
        Column(
            "anti-steerable",
            partial(mean, "anti_steerable"),
            ".0%",
            "share of pairs that move against the strength",
        ),
        Column(
            "common shift",
            partial(mean, "common_shift"),
            "+.2f",
            "what moved both sides alike, nats per token",
        ),
    ]
    missed = found.missed()
    return Section(
        "All methods",
        "Intervals are over personas. The p value is of a paired Wilcoxon test against the "
        "baseline over personas, corrected by Holm for the number of methods.",
        [
            Table.of(found.methods.values(), columns, most=len(found.methods), note=EFFECT_MEANING),
            _every_target(found),
            _every_effect(found),
        ],
        f"KL target not reached: {listing(missed, 20)}." if missed else "",
    )


def _every_target(found: Comparison) -> Table:
    columns = [
        Column("method", lambda row: found.methods[row["method"]].label),
        Column("KL target", "kl_target"),
        Column("personas", "n_personas"),
        Column("E", EFFECT),
        Column("ratio to baseline", RATIO),
        Column("p", "p"),
        Column("p (Holm)", "p_holm"),
    ]
    return Table.of(found.metrics["summary"], columns, "Every KL target", folded=True)


def _every_effect(found: Comparison) -> Table:
    columns = [
        Column("persona", lambda row: spoken(row["persona"])),
        Column("method", lambda row: found.methods[row["method"]].label),
        Column("seed", "seed"),
        Column("KL target", "kl_target"),
        Column("E", EFFECT),
        Column("moved", "moved_share"),
        Column("anti-steerable", "anti_steerable"),
        Column("common shift", "common_shift"),
        Column("slope", "slope"),
        Column("strength -", lambda row: row["minus"]["strength"]),
        Column("KL -", lambda row: row["minus"]["kl"]),
        Column("strength +", lambda row: row["plus"]["strength"]),
        Column("KL +", lambda row: row["plus"]["kl"]),
        Column("pairs", "n_pairs"),
    ]
    return Table.of(found.metrics["effects"], columns, "Every measurement", folded=True)


def _effects(found: Comparison) -> list[Section]:
    sections = []
    if any(row["effect"] is not None for row in found.metrics["summary"]):
        label = "Effect against KL for every method"
        sections.append(
            Section(
                "Effect at equal cost",
                "Macro-mean over personas with its 95% interval at each KL target. A method that "
                "does more at the same KL lies higher. Click a name to hide it, double-click to "
                "see it alone.",
                [Figure("kl_targets", label, partial(_target_figure, found))],
            )
        )
    if not found.changes().empty:
        sections.append(
            Section(
                "Over strengths",
                "Change of the mean margin against no steering, at multiples of the matched "
                "strength. A line that keeps rising steers both ways.",
                [Figure("strengths", "Margin over strengths", partial(_strength_figure, found))],
            )
        )
    return sections


def _target_figure(found: Comparison) -> Drawing:
    series = []
    # Headline and baseline come last, so that they lie on top.
    for method in reversed(found.methods.values()):
        rows = {target: found.summary[method.name, target] for target in found.kl_targets}
        there = {target: row for target, row in rows.items() if row["effect"] is not None}
        if there:
            effect, low, high = zip(*map(EFFECT, there.values()), strict=True)
            series.append(
                plots.Series(method.label, effect, list(there), low, high, **method.style)
            )
    return plots.lines(
        series,
        x_title="KL(steered ‖ base) on neutral answers, nats per token, log scale",
        y_title="effect E, nats per token",
        log_x=True,
        ticks=found.kl_targets,
    )


def _strength_figure(found: Comparison) -> Drawing:
    changes = found.changes()
    series = []
    for method in reversed(found.methods.values()):
        if method.name in changes:
            own = changes[method.name].dropna()
            series.append(plots.Series(method.label, list(own), list(own.index), **method.style))
    return plots.lines(
        series,
        x_title="multiple of the strength that meets the KL target, each sign its own",
        y_title="change of the margin, nats per token",
    )


def strength_changes(metrics: Metrics) -> list[dict[str, Any]]:
    """Return each method's change of the margin, mean over personas, by multiple of strength."""
    changes = Comparison(metrics).changes()
    return [{"multiple": at, **row.dropna().to_dict()} for at, row in changes.iterrows()]


def _personas(found: Comparison) -> Section:
    about = found.personas
    parts = ("train", "validation", "test", "judge")
    columns = [
        Column("persona", spoken),
        Column("source", lambda p: about[p]["source"]),
        *(
            Column(
                f"E, {found.methods[name].label}",
                lambda p, name=name: found.persona_effect(p, name)[0],
            )
            for name in found.pair
        ),
        Column("null, largest |E|", lambda p: max(map(abs, found.null(p)), default=None), ".3f"),
        Column("unsteered margin", lambda p: about[p]["unsteered_margin"], "+.3f"),
        Column(
            "pairs",
            lambda p: ", ".join(str(about[p][f"n_{part}"]) for part in parts),
            hint=", ".join(parts),
        ),
    ]
    null = [
        Column("persona", lambda row: spoken(row["persona"])),
        Column("null", lambda row: spoken(row["kind"])),
        Column("draws", lambda row: len(row["effects"])),
        Column("largest |E|", "largest", ".3f"),
        Column("p", "p", ".2g"),
    ]
    draws = [row for row in found.metrics["null"] if row["effects"]]
    none = "" if draws else " (none was measured)"
    return Section(
        "Persona by persona",
        f"Effect at KL {found.at:g}, strongest first. Lines are intervals over one "
        "persona's pairs, which say nothing of other personas; small dots are single seeds. The "
        f"grey band is the range of the random null{none}. A bullet marks the project's own.",
        [
            Figure("forest", "Effect by persona", partial(_forest_figure, found)),
            Table.of(found.own_effects, columns, "Table of personas", folded=True),
            Table.of(draws, null, "The random null", folded=True),
        ],
    )


def _forest_figure(found: Comparison) -> Drawing:
    personas, dots = list(found.own_effects), []
    for name, shift in reversed([*zip(found.pair, (0.15, -0.15), strict=False)]):
        measured = [found.persona_effect(persona, name) for persona in personas]
        parts = zip(*(estimate for estimate, _ in measured), strict=True)
        small = [seeds if len(seeds) > 1 else [] for _, seeds in measured]
        method = found.methods[name]
        dots.append(
            plots.Dots(method.label, *parts, colour=method.colour, shift=shift, small=small)
        )
    return plots.forest(
        [spoken(p) + (" •" if found.personas[p]["own"] else "") for p in personas],
        dots,
        null=[found.null(persona) for persona in personas],
        x_title="effect E at the headline KL target, nats per token",
    )


def _run(found: Comparison) -> Section:
    seconds = found.metrics["seconds"]
    total = sum(seconds.values())
    rows = [[stage, value, Bar(value, total, one_sided=True)] for stage, value in seconds.items()]
    files = {"Settings": found.metrics["config"], "Chosen on validation": found.metrics["chosen"]}
    return Section(
        "The run",
        "Where the time went, over all personas.",
        [
            Table(["stage", "seconds", "share"], rows, forms={"seconds": ".1f"}),
            *(
                Text(json.dumps(record, indent=2, ensure_ascii=False), title)
                for title, record in files.items()
            ),
        ],
    )
