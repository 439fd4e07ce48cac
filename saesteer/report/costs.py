"""Data of the side effects and the secondary measures."""

from __future__ import annotations

from typing import NamedTuple

from saesteer.report.reading import (
    Method,
    Metrics,
    Row,
    groups,
    label_of,
    mean,
    methods,
    number,
    rows,
    spoken,
)


class SideEffects(NamedTuple):
    """What a method does to personas that it was not aimed at.

    Attributes:
        method: The method.
        personas: Steered (rows) and measured (columns), in the same order.
        values: Effect, nats per token; None where not measured.
        target: Mean of the diagonal.
        others: Mean |effect| off the diagonal.
    """

    method: Method
    personas: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    target: float | None
    others: float | None


class ProseRow(NamedTuple):
    """Change of the loss on held-out prose, nats per token, over personas."""

    method: Method
    minus: float | None
    plus: float | None
    worst: float | None
    n_personas: int


class ChoiceRow(NamedTuple):
    """A secondary margin, averaged over personas.

    Attributes:
        method: The method.
        kind: "yes_no" or "a_b".
        base: Margin without steering, log-probability difference in nats.
        minus: Margin at the negative strength.
        plus: Margin at the positive one.
        shift: Half of plus minus minus.
        accuracy: Unsteered accuracy.
        at_chance: Personas on which the unsteered model is at chance.
        n_personas: Personas measured.
    """

    method: Method
    kind: str
    base: float | None
    minus: float | None
    plus: float | None
    shift: float | None
    accuracy: float | None
    at_chance: int
    n_personas: int


class JudgeRow(NamedTuple):
    """A judge's own quality."""

    persona: str
    auc: float | None
    n_train: int | None
    n_test: int | None


class Stage(NamedTuple):
    """A stage's time and its share of the whole."""

    name: str
    seconds: float
    share: float


def side_effect_data(metrics: Metrics) -> list[SideEffects]:
    """Take the persona-by-persona matrices, the headline method's first."""
    order = [method.name for method in methods(metrics)]
    found = [_matrix(metrics, row) for row in rows(metrics, "side_effects", "matrix")]
    kept = [matrix for matrix in found if matrix is not None]
    last = len(order)
    return sorted(
        kept, key=lambda m: order.index(m.method.name) if m.method.name in order else last
    )


def prose_data(metrics: Metrics) -> list[ProseRow]:
    """Take the prose losses, averaged over personas."""
    table = []
    for method in methods(metrics):
        own = [r for r in rows(metrics, "side_effects", "prose") if r.get("method") == method.name]
        if not own:
            continue
        by_sign = {
            sign: [number(row.get("change")) for row in own if row.get("sign") == sign]
            for sign in (-1, 1)
        }
        changes = [change for row in own if (change := number(row.get("change"))) is not None]
        people = {row.get("persona") for row in own}
        worst = max(changes, default=None)
        table.append(ProseRow(method, mean(by_sign[-1]), mean(by_sign[1]), worst, len(people)))
    return table


def choice_data(metrics: Metrics) -> list[ChoiceRow]:
    """Take the Yes/No and A/B margins, averaged over personas."""
    table = []
    for kind in dict.fromkeys(str(row.get("kind")) for row in rows(metrics, "choices_margins")):
        for method in methods(metrics):
            own = [
                row
                for row in rows(metrics, "choices_margins")
                if row.get("kind") == kind and row.get("method") == method.name
            ]
            if own:
                table.append(_choice_row(method, kind, own))
    return table


def judge_data(metrics: Metrics) -> list[JudgeRow]:
    """Take the judges' own AUCs."""
    return [
        JudgeRow(
            spoken(row.get("persona")),
            number(row.get("auc")),
            None if (n := number(row.get("n_train"))) is None else int(n),
            None if (n := number(row.get("n_test"))) is None else int(n),
        )
        for row in rows(metrics, "judges")
    ]


def stage_data(metrics: Metrics) -> list[Stage]:
    """Take where the time went, in the order of the stages."""
    found = {
        str(name): seconds
        for name, value in groups(metrics, "seconds").items()
        if (seconds := number(value)) is not None
    }
    total = sum(found.values())
    return [Stage(name, s, s / total if total else 0.0) for name, s in found.items()]


def _matrix(metrics: Metrics, row: Row) -> SideEffects | None:
    names = tuple(spoken(name) for name in row.get("personas") or ())
    given = row.get("values") or []
    if not names or len(given) != len(names) or any(len(line) != len(names) for line in given):
        return None
    values = tuple(tuple(number(value) for value in line) for line in given)
    diagonal = [values[place][place] for place in range(len(names))]
    off = [
        abs(value)
        for i, line in enumerate(values)
        for j, value in enumerate(line)
        if i != j and value is not None
    ]
    name = str(row.get("method"))
    method = Method(name, label_of(metrics, name), "")
    return SideEffects(method, names, values, mean(diagonal), mean(off))


def _choice_row(method: Method, kind: str, own: list[Row]) -> ChoiceRow:
    base, minus, plus, accuracy = (
        mean(row.get(name) for row in own) for name in ("base", "minus", "plus", "accuracy")
    )
    shift = None if plus is None or minus is None else (plus - minus) / 2
    at_chance = sum(row.get("at_chance") is True for row in own)
    return ChoiceRow(method, kind, base, minus, plus, shift, accuracy, at_chance, len(own))
