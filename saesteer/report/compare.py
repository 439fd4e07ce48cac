"""The report of a comparison: headline, effect at equal cost, personas, methods, side effects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report import plots
from saesteer.report.compare_texts import feature_section, text_sections
from saesteer.report.comparison import EFFECT, RATIO, Comparison, Method, average
from saesteer.report.layout import Bar, Choice, Column, Figure, Section, Table, Text, estimate
from saesteer.report.report import Report
from saesteer.report.wording import listing, show, spoken
from saesteer.saes.neuronpedia.links import SITE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

Metrics = Mapping[str, Any]
AREA = estimate("area")
CHOICES = {"yes_no": "Yes / No", "a_b": "A / B"}
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
            _side_effects(found),
            _choices(found),
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


def _side_effects(found: Comparison) -> Section:
    """What each method does to other personas and to the loss on prose."""
    matrices = found.metrics["side_effects"]["matrix"]
    items: list[Any] = []
    if matrices:
        columns = ["method", "on the target, mean", "on the others, mean |E|", "others / target"]
        forms = {columns[1]: "+.3f", columns[2]: ".3f", columns[3]: ".0%"}
        options = {
            found.methods[matrix["method"]].label: [
                Figure(
                    f"matrix-{place}",
                    "Side-effect matrix",
                    partial(_matrix_figure, matrix),
                    colours="matrix",
                )
            ]
            for place, matrix in enumerate(matrices)
        }
        rows = [_matrix_row(found, matrix) for matrix in matrices]
        items += [Table(columns, rows, forms=forms), Choice("matrix", "Method", options)]
    else:
        items.append(Text("No side effects on other personas were measured."))
    prose = found.by_method(found.metrics["side_effects"]["prose"])
    if prose:
        columns = ["method", "negative strength", "positive strength", "worst", "personas"]
        rows = [[method.mark, *_prose_cells(own)] for method, own in prose]
        note = (
            "Change of the loss against the unsteered model, nats per token, averaged over "
            "personas; above 0 is damage."
        )
        forms = dict.fromkeys(columns[1:4], "+.3f")
        items.append(Table(columns, rows, "Loss on held-out prose", forms=forms, note=note))
    else:
        items.append(Text("No loss on prose was measured."))
    return Section(
        "What else moved",
        "Effect on every persona (across) when one is steered (down), at the strengths of KL "
        f"{found.at:g}. The diagonal is the aim; the rest is side effect. All "
        "matrices share one colour scale, white at 0.",
        items,
    )


def _matrix_row(found: Comparison, matrix: Mapping[str, Any]) -> list[Any]:
    values = matrix["values"]
    target = average(line[place] for place, line in enumerate(values))
    other = average(
        None if value is None else abs(value)
        for i, line in enumerate(values)
        for j, value in enumerate(line)
        if i != j
    )
    share = other / target if target and other is not None else None
    return [found.methods[matrix["method"]].mark, target, other, share]


def _matrix_figure(matrix: Mapping[str, Any]) -> Drawing:
    names = [spoken(name) for name in matrix["personas"]]
    texts = [[show(value) for value in line] for line in matrix["values"]]
    return plots.heatmap(
        np.array(matrix["values"], dtype=float),
        names,
        names,
        row_title="steered",
        column_title="measured",
        texts=texts if len(names) <= 14 else None,
        unit="E",
        downwards=True,
    )


def _prose_cells(own: list[Mapping[str, Any]]) -> list[Any]:
    sides = [average(row["change"] for row in own if row["sign"] == sign) for sign in (-1, 1)]
    worst = max((row["change"] for row in own if row["change"] is not None), default=None)
    return [*sides, worst, len({row["persona"] for row in own})]


def _choices(found: Comparison) -> Section:
    """The margins of Yes/No and A/B questions."""
    margins = found.metrics["choices_margins"]
    rows = [
        [words, method.mark, *_choice_cells(own)]
        for kind, words in CHOICES.items()
        for method, own in found.by_method(row for row in margins if row["kind"] == kind)
    ]
    columns = ["question", "method", "unsteered", "negative", "positive", "shift"]
    columns += ["accuracy, unsteered", "at chance"]
    forms = dict.fromkeys(columns[2:6], "+.2f") | {columns[6]: ".0%"}
    hints = {"shift": "half of positive minus negative"}
    none = Text("No Yes/No or A/B margins were measured.")
    return Section(
        "Secondary margins",
        "Log-probability of the matching answer less that of the other, in nats, option order "
        "averaged. Where the unsteered model is at chance it does not understand the question "
        "well, and a shift there says little.",
        [Table(columns, rows, forms=forms, hints=hints) if rows else none],
    )


def _choice_cells(own: list[Mapping[str, Any]]) -> list[Any]:
    base, minus, plus, accuracy = (
        average(row[key] for row in own) for key in ("base", "minus", "plus", "accuracy")
    )
    shift = None if plus is None or minus is None else (plus - minus) / 2
    at_chance = sum(row["at_chance"] for row in own)
    words = f"{at_chance} of {len(own)}" if at_chance else "no"
    return [base, minus, plus, shift, accuracy, words]


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
