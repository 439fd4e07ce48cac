"""What else a comparison's vectors move: other personas, the loss on prose, choices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.report import plots
from saesteer.report.compare_rows import Comparison, average
from saesteer.report.layout import Choice, Figure, Section, Table, Text
from saesteer.report.wording import show, spoken

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

CHOICES = {"yes_no": "Yes / No", "a_b": "A / B"}


def side_effect_section(found: Comparison) -> Section:
    """Return what each method does to other personas and to the loss on prose."""
    matrices = found.metrics["side_effects"]["matrix"]
    items: list[Any] = []
    if matrices:
        rows = [_matrix_row(found, matrix) for matrix in matrices]
        columns = ["method", "on the target, mean", "on the others, mean |E|", "others / target"]
        forms = {columns[1]: "+.3f", columns[2]: ".3f", columns[3]: ".0%"}
        options = {
            found.label(matrix["method"]): [
                Figure(
                    f"matrix-{place}",
                    "Side-effect matrix",
                    partial(_matrix_figure, matrix),
                    colours="matrix",
                )
            ]
            for place, matrix in enumerate(matrices)
        }
        items += [Table(columns, rows, forms=forms), Choice("matrix", "Method", options)]
    else:
        items.append(Text("No side effects on other personas were measured."))
    prose = _prose(found)
    if prose:
        columns = ["method", "negative strength", "positive strength", "worst", "personas"]
        caption = "Loss on held-out prose"
        note = (
            "Change of the loss against the unsteered model, nats per token, averaged over "
            "personas; above 0 is damage."
        )
        forms = dict.fromkeys(columns[1:4], "+.3f")
        items.append(Table(columns, prose, caption, forms=forms, note=note))
    else:
        items.append(Text("No loss on prose was measured."))
    return Section(
        "What else moved",
        "Effect on every persona (across) when one is steered (down), at the strengths of KL "
        f"{found.headline_kl_target:g}. The diagonal is the aim; the rest is side effect. All "
        "matrices share one colour scale, white at 0.",
        items,
    )


def _matrix_row(found: Comparison, matrix: Mapping[str, Any]) -> list[Any]:
    values = matrix["values"]
    diagonal = [line[place] for place, line in enumerate(values)]
    others = [
        abs(v)
        for i, line in enumerate(values)
        for j, v in enumerate(line)
        if i != j and v is not None
    ]
    target, other = average(diagonal), average(others)
    share = other / target if target and other is not None else None
    return [found.mark(found.method(matrix["method"])), target, other, share]


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


def _prose(found: Comparison) -> list[list[Any]]:
    table = []
    for method in found.methods:
        own = [r for r in found.metrics["side_effects"]["prose"] if r["method"] == method.name]
        if own:
            minus, plus = (average(r["change"] for r in own if r["sign"] == s) for s in (-1, 1))
            worst = max((r["change"] for r in own if r["change"] is not None), default=None)
            people = len({row["persona"] for row in own})
            table.append([found.mark(method), minus, plus, worst, people])
    return table


def choice_section(found: Comparison) -> Section:
    """Return the margins of Yes/No and A/B questions."""
    rows = []
    margins = found.metrics["choices_margins"]
    for kind, words in CHOICES.items():
        for method in found.methods:
            own = [r for r in margins if (r["kind"], r["method"]) == (kind, method.name)]
            if own:
                rows.append([words, found.mark(method), *_choice_cells(own)])
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
