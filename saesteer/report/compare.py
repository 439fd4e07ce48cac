"""The report of a comparison: headline, effect at equal cost, personas, methods, side effects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from saesteer.report import plots
from saesteer.report.compare_details import (
    choice_section,
    feature_section,
    side_effect_section,
    text_sections,
)
from saesteer.report.comparison import EFFECT, PERSONA, RATIO, Comparison, Method, average
from saesteer.report.feature_curve import curve_remarks, curve_section
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

HINTS = {
    "headline": "the headline KL target",
    "area": "under E against log KL, over the log range, nats per token",
    "p": "paired Wilcoxon over personas against the baseline, Holm's",
    "null": "personas where E exceeds every random draw at the same KL",
    "judge": "how far admitted judges read the texts of both signs apart; 1 is as far as answers "
    "written as the persona and as its opposite",
    "anti-steerable": "share of pairs that move against the strength",
    "common shift": "what moved both sides alike, nats per token",
}


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
        remarks=[*found.remarks(), *curve_remarks(found)],
        tiles=found.tiles(),
        sections=[
            _methods(found),
            *curve_section(found),
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
    missed = found.missed()
    return Section(
        "All methods",
        "Intervals are over personas. The p value is of a paired Wilcoxon test against the "
        "baseline over personas, corrected by Holm for the number of methods.",
        [_method_table(found), *_folded_tables(found)],
        f"KL target not reached: {listing(missed, 20)}." if missed else "",
    )


def _method_table(found: Comparison) -> Table:
    at, metrics = found.at, found.metrics
    areas = {row["method"]: AREA(row) for row in metrics["areas"]}
    judged = {
        row["method"]: row["judge_range"]
        for row in metrics["generation_summary"]
        if row["kl_target"] in (at, None)
    }

    def effect_at(target: float) -> Column:
        hint = HINTS["headline"] if target == at else ""
        name = f"E at KL {target:g}"
        return Column(name, lambda m: EFFECT(found.summary[m.name, target]), hint=hint)

    def mean(key: str) -> Callable[[Method], float | None]:
        return lambda method: average(row[key] for row in found.effects(method.name, at))

    def beyond(method: Method) -> str | None:
        row = found.summary[method.name, at]
        n = row["beyond_null"]
        return None if n is None else f"{n}/{row['n_personas']}"

    columns = [
        Column("method", lambda m: m.mark),
        *map(effect_at, found.kl_targets),
        Column("area", lambda m: areas.get(m.name), hint=HINTS["area"]),
        Column("ratio to baseline", lambda m: RATIO(found.summary[m.name, at]), ".2f"),
        Column("p", lambda m: found.summary[m.name, at]["p_holm"], ".2g", HINTS["p"]),
        Column("null", beyond, hint=HINTS["null"]),
        Column("judge", lambda m: judged.get(m.name), ".2f", HINTS["judge"]),
        Column("anti-steerable", mean("anti_steerable"), ".0%", HINTS["anti-steerable"]),
        Column("common shift", mean("common_shift"), "+.2f", HINTS["common shift"]),
    ]
    printed = ("method", f"E at KL {at:g}", "ratio to baseline", "p", "null", "judge")
    own = found.methods.values()
    return Table.of(own, columns, printed=printed, most=len(own), note=EFFECT_MEANING)


def _folded_tables(found: Comparison) -> list[Table]:
    """Return the rows of every KL target and of every measurement."""
    label = Column("method", lambda row: found.methods[row["method"]].label)
    effect, ratio = Column("E", EFFECT), Column("ratio to baseline", RATIO)
    targets = (
        *(label, "KL target=kl_target", "personas=n_personas", effect, ratio),
        *("p", "p (Holm)=p_holm"),
    )
    measurements = (
        *(PERSONA, label, "seed", "KL target=kl_target", effect, "moved=moved_share"),
        *("anti-steerable=anti_steerable", "common shift=common_shift", "slope"),
        Column("strength -", lambda row: row["minus"]["strength"]),
        Column("KL -", lambda row: row["minus"]["kl"]),
        Column("strength +", lambda row: row["plus"]["strength"]),
        Column("KL +", lambda row: row["plus"]["kl"]),
        "pairs=n_pairs",
    )
    metrics = found.metrics
    return [
        Table.of(metrics["summary"], targets, "Every KL target", folded=True),
        Table.of(metrics["effects"], measurements, "Every measurement", folded=True),
    ]


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
    changes = found.changes()
    if not changes.empty:
        curves = [
            plots.Series(method.label, list(own), list(own.index), **method.style)
            for method in reversed(found.methods.values())
            if method.name in changes
            for own in [changes[method.name].dropna()]
        ]
        draw = partial(
            plots.lines,
            curves,
            x_title="multiple of the strength that meets the KL target, each sign its own",
            y_title="change of the margin, nats per token",
        )
        sections.append(
            Section(
                "Over strengths",
                "Change of the mean margin against no steering, at multiples of the matched "
                "strength. A line that keeps rising steers both ways.",
                [Figure("strengths", "Margin over strengths", draw)],
            )
        )
    return sections


def _target_figure(found: Comparison) -> Drawing:
    series = []
    # Headline and baseline come last, so that they lie on top.
    for method in reversed(found.methods.values()):
        rows = [found.summary[method.name, target] for target in found.kl_targets]
        there = {row["kl_target"]: EFFECT(row) for row in rows if row["effect"] is not None}
        if there:
            effect, low, high = zip(*there.values(), strict=True)
            series.append(
                plots.Series(method.label, effect, list(there), low, high, **method.style)
            )
    return plots.lines(
        series,
        x_title="KL(steered ‖ base) on neutral answers, nats per token, log scale",
        y_title="effect E, nats per token",
        log_x=True,
        ticks={target: f"{target:g}" for target in found.kl_targets},
    )


def strength_changes(metrics: Metrics) -> list[dict[str, Any]]:
    """Return each method's change of the margin, mean over personas, by multiple of strength."""
    changes = Comparison(metrics).changes()
    return [{"multiple": at, **row.dropna().to_dict()} for at, row in changes.iterrows()]


def _personas(found: Comparison) -> Section:
    about = found.personas
    parts = ("train", "validation", "test", "judge")

    def effect_of(name: str) -> Column:
        label = found.methods[name].label
        return Column(f"E, {label}", lambda p: found.persona_effect(p, name)[0])

    columns = [
        Column("persona", spoken),
        Column("source", lambda p: about[p]["source"]),
        *map(effect_of, found.pair),
        Column("null, largest |E|", lambda p: max(map(abs, found.null(p)), default=None), ".3f"),
        Column("unsteered margin", lambda p: about[p]["unsteered_margin"], "+.3f"),
        Column(
            "pairs",
            lambda p: ", ".join(str(about[p][f"n_{part}"]) for part in parts),
            hint=", ".join(parts),
        ),
    ]
    null = [
        PERSONA,
        Column("null", lambda row: spoken(row["kind"])),
        Column("draws", lambda row: len(row["effects"])),
        "largest |E|=largest:.3f",
        "p:.2g",
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
