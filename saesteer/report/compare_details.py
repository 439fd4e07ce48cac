"""What a comparison's vectors are made of, what the steered model writes, what else moves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report import plots
from saesteer.report.comparison import PERSONA, RATIO, Comparison, Method, Row, average
from saesteer.report.features import cluster_colours, cluster_tree, feature_table, no_tree
from saesteer.report.layout import (
    Bar,
    Choice,
    Column,
    Figure,
    Item,
    Said,
    Section,
    Table,
    Text,
    Texts,
    estimate,
)
from saesteer.report.wording import Estimate, show, spoken

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

CHOICES = {"yes_no": "Yes / No", "a_b": "A / B"}
SIGNS = {-1: "negative", 0: "none", 1: "positive"}
MEASURES = ("judge", "sentiment", "nll", "rep4", "distinct2", "similarity", "composite")
RATINGS = ("behaviour", "instruction", "fluency", "harmonic_mean")
MASKED_RATIO = ("masked_ratio", "masked_ratio_low", "masked_ratio_high")
JUDGE = estimate("judge", "judge_low", "judge_high")
OPENED = 2
NO_JUDGE = (
    "No admitted judge: nothing is claimed about what the model writes. Give answers of known "
    "sides (personas: answers) and a description of both sides (description and opposite), and "
    "see the judges below."
)


def feature_section(found: Comparison, *, embeds: bool) -> Section:
    """The features of each persona's headline vector, with their cluster tree."""
    options: dict[str, list[Item]] = {}
    for place, (persona, rows) in enumerate(found.metrics["features"].items()):
        if not rows:
            options[spoken(persona)] = [Text("The vector is not made of SAE features.")]
            continue
        shown = sorted(rows, key=lambda row: -abs(row["weight"] or 0.0))
        record = found.metrics["linkage"][persona]
        clusters = [row["cluster"] for row in shown] + list(record.get("clusters", ()))
        colours = cluster_colours(clusters)
        why = no_tree(record)
        tree = Figure(
            f"tree-{place}",
            "Cluster tree",
            partial(cluster_tree, record, rows, colours),
            "Joined from the right by how alike the features fire. Dots are features with a "
            "weight: green adds, purple takes away, area is size.",
        )
        items = [feature_table(shown, colours), Text(why) if why else tree]
        if at := rows[0].get("place"):
            items.insert(0, Text(f"The vector is at {at}; shown are the features of the first."))
        options[spoken(persona)] = items
    shows = (
        ", and the button beside it shows that page here, for which your browser then asks "
        "Neuronpedia"
    )
    return Section(
        "What the vector is made of",
        "The SAE features of the headline vector with the weight each adds. Features that fire "
        "together on the pairs share a cluster. Open a feature to see texts where it fires most; "
        f"a linked number leads to its page on the web{shows if embeds else ''}.",
        [Choice("persona", "Persona", options)],
    )


def text_sections(found: Comparison) -> list[Section]:
    """What the judge reads, the texts side by side, and how good the judges are."""
    metrics = found.metrics
    if not metrics["generation_summary"]:
        none = Text("No completions were written.")
        return [Section("What the model writes", items=[none])]
    items: list[Item] = []
    # A folder of an earlier version has judges that nothing admitted.
    judges = [row for row in metrics["judges"] if "verdict" in row]
    if not any(row["headline"] for row in judges):
        items.append(Text(NO_JUDGE))
    items += [*_judge_figures(found), _summary_table(found), _by_judge_table(found)]
    # Neither is there of earlier versions.
    if metrics.get("masked"):
        items.append(_masked_table(found))
    if metrics.get("at_prompt"):
        items.append(_prompt_table(found))
    items.append(_means_table(found))
    if metrics["llm_judge"]:
        items.append(_llm_table(found))
    about = (
        "Answers to questions about the speaker and to neutral ones at the matched strengths, read "
        "by judges that sort answers whose side is known. A reading of 1 is as far as the means of "
        "such answers of the two sides lie apart, and 0 is half way between them."
    )
    sections = [Section("What the model writes", about, items)]
    texts = {spoken(p): _side_by_side(found, rows) for p, rows in metrics["completions"].items()}
    if any(texts.values()):
        choice = Choice("persona", "Persona", texts)
        sections.append(Section("Side by side", "Questions drawn by chance, uncut.", [choice]))
    if judges:
        columns = (
            *(PERSONA, "judge", "kind"),
            Column("AUC", estimate("auc", "low", "high"), ".3f"),
            *("texts a side=n", "on", "verdict"),
            Column("counts", lambda row: "yes" if row["headline"] else "shown only"),
        )
        about = (
            "How well each judge sorts answers of known sides to questions that it never saw: the "
            "area under the ROC curve, 0.5 being chance. From 0.85 a judge is admitted, from "
            "0.75 it is doubtful, and what is said of texts rests on those two alone; a judge of "
            "the kind that the headline method learned from is only shown where another one counts."
        )
        sections.append(Section("The judges themselves", about, [Table.of(judges, columns)]))
    return sections


def _judge_figures(found: Comparison) -> list[Figure]:
    """The judge's reading at the negative, no and the positive strength, where there is one."""
    generation, nothing = found.metrics["generation"], Estimate(None)
    personas = list(dict.fromkeys(row["persona"] for row in generation))
    read = {
        (row["method"], row["persona"], row["sign"]): JUDGE(row)
        for row in generation
        if row["kl_target"] in (found.at, None)
    }
    spans: dict[str, list[list[Estimate]]] = {name: [] for name in found.pair}
    for name, persona in product(found.pair, personas):
        span = [read.get((name, persona, sign), nothing) for sign in SIGNS]
        whole = span[0].value is not None and span[2].value is not None
        spans[name].append(span if whole else [nothing] * len(SIGNS))
    if all(span[0].value is None for own in spans.values() for span in own):
        return []
    dots = [
        plots.Dots(
            f"{found.methods[name].label}, {SIGNS[place - 1]} strength",
            *zip(*(span[place] for span in spans[name]), strict=True),
            colour=found.methods[name].colour,
            shift=shift if len(found.pair) > 1 else 0.0,
            symbol=symbol,
            start=[span[0].value for span in spans[name]] if place else (),
        )
        for name, shift in zip(found.pair, (0.15, -0.15), strict=False)
        for place, symbol in ((0, "circle-open"), (2, "circle"))
    ]
    unsteered = [
        next((span[1].value for span in of_one if span[1].value is not None), None)
        for of_one in zip(*spans.values(), strict=True)
    ]
    dots.append(plots.Dots("no steering", unsteered, colour=plots.SOFT, symbol="line-ns-open"))
    draw = partial(
        plots.forest,
        [spoken(persona) for persona in personas],
        dots,
        x_title="mean reading: against the persona ← → like the persona",
    )
    return [Figure("judge", "Judge by persona", draw)]


def _summary_table(found: Comparison) -> Table:
    right = "personas above the base at the positive strength, below it at the negative one"
    proxy = "fluency and relevance by proxy, 0 to 1; not a human rating"
    columns = [
        Column("method", lambda row: found.methods[row["method"]].mark),
        "KL=kl_target:g",
        Column("judge range", estimate("judge_range"), ".2f"),
        Column("ratio to baseline", RATIO, ".2f"),
        Column("right direction", "right_direction", hint=right),
        "personas=n_personas",
        Column("composite (proxy)", "composite", ".3f", proxy),
    ]
    rows = [
        row
        for _, own in found.by_method(found.metrics["generation_summary"])
        for row in sorted(own, key=lambda row: row["kl_target"] or 0.0)
    ]
    return Table.of(rows, columns, "Summary")


def _by_judge_table(found: Comparison) -> Table:
    columns = [
        Column("method", lambda row: found.methods[row["method"]].mark),
        *("KL=kl_target:g", "judge"),
        Column("range", estimate("judge_range"), ".2f"),
        Column("ratio to baseline", RATIO, ".2f"),
    ]
    rows = [
        row for _, own in found.by_method(found.metrics.get("generation_judges", ())) for row in own
    ]
    return Table.of(rows, columns, "Each judge by itself", folded=True)


def _masked_table(found: Comparison) -> Table:
    columns = [
        Column("method", lambda row: found.methods[row["method"]].mark),
        Column("judge", _read_by),
        Column("range", estimate("judge_range"), ".2f"),
        Column("masked", estimate("masked_judge_range", "masked_low", "masked_high"), ".2f"),
        Column("ratio to baseline", RATIO, ".2f"),
        Column("masked ratio", estimate(*MASKED_RATIO), ".2f"),
    ]
    note = (
        'Masked are what the speaker says to be ("I\'m a kind ...", "As an AI ..."), the words '
        "of the descriptions, and the 30 words of a side that tell the training statements apart."
    )
    rows = [row for _, own in found.by_method(found.metrics["masked"]) for row in own]
    return Table.of(rows, columns, "Without slogans and the persona's own words", note=note)


def _prompt_table(found: Comparison) -> Table:
    columns = [
        Column("method", lambda row: found.methods[row["method"]].mark),
        Column("judge", _read_by),
        *("KL -=kl_minus:.2f", "KL +=kl_plus:.2f"),
        Column("range", estimate("judge_range"), ".2f"),
        Column("ratio to the prompt", RATIO, ".2f"),
        "composite (proxy)=composite",
    ]
    note = "Each side has the KL that the prompt of that side costs, on average over personas."
    rows = [row for _, own in found.by_method(found.metrics["at_prompt"]) for row in own]
    return Table.of(rows, columns, "At the prompt's own KL", note=note)


def _read_by(row: Row) -> str:
    return row["judge"] or "those that count"


def _by_sign(
    found: Comparison, records: Iterable[Row], means: Sequence[str], sums: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return means and sums of the records of each method and sign that has any."""
    return [
        {"method": method.mark, "steering": word}
        | {key: average(row[key] for row in own) for key in means}
        | {key: sum(row[key] for row in own) for key in sums}
        for method, listed in found.by_method(records)
        for sign, word in SIGNS.items()
        if (own := [row for row in listed if row["sign"] == sign])
    ]


def _means_table(found: Comparison) -> Table:
    at = found.at
    rows = [row for row in found.metrics["generation"] if row["kl_target"] in (at, None)]
    sentiment = "VADER compound, a check that the judge is not reading sentiment alone"
    columns = [
        *("method", "steering", "judge:+.2f"),
        Column("sentiment", "sentiment", "+.2f", sentiment),
        Column("NLL", "nll", ".2f", "of the unsteered model, nats per token"),
        *("rep-4=rep4", "distinct-2=distinct2"),
        Column("similarity", "similarity", hint="of answer to question"),
        "composite (proxy)=composite",
    ]
    caption = f"Text figures by method and sign at KL {at:g}"
    return Table.of(_by_sign(found, rows, MEASURES), columns, caption, folded=True)


def _llm_table(found: Comparison) -> Table:
    counts = ("n", "n_missing")
    rows = _by_sign(found, found.metrics["llm_judge"], RATINGS, counts)
    columns = (
        *("method", "steering", "behaviour:.2f", "instruction:.2f", "fluency:.2f"),
        *("harmonic mean=harmonic_mean:.2f", "texts=n", "missing=n_missing"),
    )
    note = (
        "Three ratings from 0 to 2 and their harmonic mean, averaged over personas. A reply that "
        "could not be read counts as missing, never as zero."
    )
    return Table.of(rows, columns, "A language model as judge", note=note)


def _side_by_side(found: Comparison, records: Sequence[Row]) -> list[Item]:
    full = max([1.0, *(abs(r["judge"]) for r in records if r["judge"] is not None)])
    items: list[Item] = []
    for question in dict.fromkeys(row["question"] for row in records):
        rows: dict[str, dict[str, list[Said]]] = {}
        for method, own in found.by_method(r for r in records if r["question"] == question):
            # A prompt has signs and no strengths.
            for row in sorted(own, key=lambda row: (row["sign"], row["strength"])):
                judge = None if row["judge"] is None else Bar(row["judge"], full)
                columns = rows.setdefault(method.label, {})
                columns.setdefault(_strength(row), []).append(Said(row["text"], judge))
        items.append(Texts(question, rows, opened=len(items) < OPENED))
    return items


def _strength(row: Row) -> str:
    if not row["sign"]:
        return "no steering"
    return f"strength {show(row['strength'], '+.2f')}" if row["strength"] else SIGNS[row["sign"]]


def side_effect_section(found: Comparison) -> Section:
    """What each method does to other personas and to the loss on prose."""
    matrices = found.metrics["side_effects"]["matrix"]
    items: list[Any] = []
    if matrices:
        columns = (
            *("method", "on the target, mean=target:+.3f", "on the others, mean |E|=others:.3f"),
            "others / target=share:.0%",
        )
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
        rows = [_matrix_means(found, matrix) for matrix in matrices]
        items += [Table.of(rows, columns), Choice("matrix", "Method", options)]
    else:
        items.append(Text("No side effects on other personas were measured."))
    prose = found.by_method(found.metrics["side_effects"]["prose"])
    if prose:
        columns = (
            *("method", "negative strength=-1:+.3f", "positive strength=1:+.3f", "worst:+.3f"),
            "personas",
        )
        note = (
            "Change of the loss against the unsteered model, nats per token, averaged over "
            "personas; above 0 is damage."
        )
        rows = [_prose_means(method, own) for method, own in prose]
        items.append(Table.of(rows, columns, "Loss on held-out prose", note=note))
    else:
        items.append(Text("No loss on prose was measured."))
    return Section(
        "What else moved",
        "Effect on every persona (across) when one is steered (down), at the strengths of KL "
        f"{found.at:g}. The diagonal is the aim; the rest is side effect. All "
        "matrices share one colour scale, white at 0.",
        items,
    )


def _matrix_means(found: Comparison, matrix: Row) -> dict[str, Any]:
    values = np.array(matrix["values"], dtype=object)
    own = np.eye(len(values), dtype=bool)
    target = average(values[own])
    others = average(None if value is None else abs(value) for value in values[~own])
    share = others / target if target and others is not None else None
    mark = found.methods[matrix["method"]].mark
    return {"method": mark, "target": target, "others": others, "share": share}


def _matrix_figure(matrix: Row) -> Drawing:
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


def _prose_means(method: Method, own: Sequence[Row]) -> dict[str, Any]:
    worst = max((row["change"] for row in own if row["change"] is not None), default=None)
    return {
        "method": method.mark,
        **{
            str(sign): average(row["change"] for row in own if row["sign"] == sign)
            for sign in (-1, 1)
        },
        "worst": worst,
        "personas": len({row["persona"] for row in own}),
    }


def choice_section(found: Comparison) -> Section:
    """The margins of Yes/No and A/B questions."""
    margins = found.metrics["choices_margins"]
    rows = [
        {"question": words, "method": method.mark, **_choice_means(own)}
        for kind, words in CHOICES.items()
        for method, own in found.by_method(row for row in margins if row["kind"] == kind)
    ]
    columns = (
        *("question", "method", "unsteered=base:+.2f", "negative=minus:+.2f"),
        "positive=plus:+.2f",
        Column("shift", "shift", "+.2f", "half of positive minus negative"),
        *("accuracy, unsteered=accuracy:.0%", "at chance"),
    )
    none = Text("No Yes/No or A/B margins were measured.")
    return Section(
        "Secondary margins",
        "Log-probability of the matching answer less that of the other, in nats, option order "
        "averaged. Where the unsteered model is at chance it does not understand the question "
        "well, and a shift there says little.",
        [Table.of(rows, columns) if rows else none],
    )


def _choice_means(own: Sequence[Row]) -> dict[str, Any]:
    means = {key: average(row[key] for row in own) for key in ("base", "minus", "plus", "accuracy")}
    plus, minus = means["plus"], means["minus"]
    at_chance = sum(row["at_chance"] for row in own)
    return {
        **means,
        "shift": None if plus is None or minus is None else (plus - minus) / 2,
        "at chance": f"{at_chance} of {len(own)}" if at_chance else "no",
    }
