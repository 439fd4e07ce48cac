"""Data of the generation part: how the judge reads what was written, and the texts themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from saesteer.report.reading import (
    Method,
    Metrics,
    Point,
    Row,
    groups,
    headline_kl_target,
    mean,
    methods,
    number,
    personas,
    point,
    rows,
    same,
)


class WrittenRow(NamedTuple):
    """A method's line in the generation summary at one KL target."""

    method: Method
    kl_target: float
    judge_range: Point
    ratio: Point
    right_direction: object
    composite: float | None


class JudgeSpan(NamedTuple):
    """The judge's mean logit for one method on one persona, by sign of the strength."""

    method: Method
    persona: str
    minus: Point
    base: Point
    plus: Point


class LlmMeans(NamedTuple):
    """A language-model judge's mean ratings (0 to 2) of one method's texts at one sign."""

    method: Method
    sign: int
    behaviour: float | None
    instruction: float | None
    fluency: float | None
    harmonic_mean: float | None
    n: int
    n_missing: int


class WrittenMeans(NamedTuple):
    """Means over personas of one method's texts at one sign, headline KL target."""

    method: Method
    sign: int
    judge: float | None
    sentiment: float | None
    nll: float | None
    rep4: float | None
    distinct2: float | None
    similarity: float | None
    composite: float | None
    n_personas: int


class Completion(NamedTuple):
    """One text at one strength, with the judge's logit."""

    strength: float | None
    sign: int
    text: str
    judge: float | None


class CompletionRow(NamedTuple):
    """One method's texts for one question, from the most negative strength to the most positive;
    a column holds the texts of one strength."""

    method: Method
    columns: tuple[tuple[Completion, ...], ...]


class QuestionTexts(NamedTuple):
    """One question with every method's texts."""

    question: str
    methods: tuple[CompletionRow, ...]


def written_table(metrics: Metrics) -> list[WrittenRow]:
    """Take the generation summary out of the metrics, KL targets rising within each method."""
    named = {method.name: method for method in methods(metrics)}
    found = [
        WrittenRow(
            named[str(row.get("method"))],
            kl_target,
            point(row, "judge_range"),
            point(row, "ratio", "ratio_"),
            row.get("right_direction"),
            number(row.get("composite")),
        )
        for row in rows(metrics, "generation_summary")
        if str(row.get("method")) in named
        and (kl_target := number(row.get("kl_target"))) is not None
    ]
    order = list(named)
    return sorted(found, key=lambda row: (order.index(row.method.name), row.kl_target))


def judge_spans(metrics: Metrics) -> list[JudgeSpan]:
    """Take the judge's readings of headline and baseline at the headline KL target."""
    wanted = [metrics.get("headline_method"), metrics.get("baseline")]
    chosen = [method for method in methods(metrics) if method.name in wanted]
    spans = []
    for persona in personas(metrics):
        for method in chosen:
            minus, base, plus = (
                point(_generation_row(metrics, persona, method.name, sign), "judge", "judge_")
                for sign in (-1, 0, 1)
            )
            if minus.value is not None and plus.value is not None:
                spans.append(JudgeSpan(method, persona, minus, base, plus))
    return spans


def written_means(metrics: Metrics) -> list[WrittenMeans]:
    """Take every method's text figures, averaged over personas, at the headline KL target."""
    fields = ("judge", "sentiment", "nll", "rep4", "distinct2", "similarity", "composite")
    means = []
    for method in methods(metrics):
        for sign in (-1, 0, 1):
            own = [
                found
                for persona in _written_personas(metrics)
                if (found := _generation_row(metrics, persona, method.name, sign)) is not None
            ]
            if own:
                values = (mean(row.get(field) for row in own) for field in fields)
                means.append(WrittenMeans(method, sign, *values, n_personas=len(own)))
    return means


def llm_means(metrics: Metrics) -> list[LlmMeans]:
    """Take a language-model judge's ratings, averaged over personas; empty where none was asked."""
    fields = ("behaviour", "instruction", "fluency", "harmonic_mean")
    found = []
    for method in methods(metrics):
        for sign in (-1, 0, 1):
            own = [
                row
                for row in rows(metrics, "llm_judge")
                if row.get("method") == method.name and number(row.get("sign")) == sign
            ]
            if own:
                values = (mean(row.get(field) for row in own) for field in fields)
                n, missing = (
                    int(sum(number(row.get(key)) or 0 for row in own)) for key in ("n", "n_missing")
                )
                found.append(LlmMeans(method, sign, *values, n=n, n_missing=missing))
    return found


def completion_data(metrics: Metrics, persona: str) -> list[QuestionTexts]:
    """Take one persona's texts, questions in the order they come.

    A method that has unsteered texts alone, or none at all, is the base: its texts stand in every
    method's row that has no unsteered texts of its own.
    """
    records = rows(groups(metrics, "completions"), persona)
    named = {method.name: method for method in methods(metrics)}
    questions: dict[str, list[Row]] = {}
    for record in records:
        questions.setdefault(str(record.get("question") or ""), []).append(record)
    return [
        QuestionTexts(question, _completion_rows(own, named)) for question, own in questions.items()
    ]


def judge_scale(texts: Sequence[QuestionTexts]) -> float:
    """Return the largest |logit| among the texts, at least 1: the full length of a judge's bar."""
    found = [
        abs(one.judge)
        for question in texts
        for row in question.methods
        for column in row.columns
        for one in column
        if one.judge is not None
    ]
    return max([1.0, *found])


def _completion_rows(records: Sequence[Row], named: dict[str, Method]) -> tuple[CompletionRow, ...]:
    by_method: dict[str, list[Completion]] = {}
    for record in records:
        by_method.setdefault(str(record.get("method") or ""), []).append(_completion(record))
    steered = {name: own for name, own in by_method.items() if any(one.sign for one in own)}
    base = [one for name, own in by_method.items() if name not in steered for one in own]
    if not steered:
        return (CompletionRow(Method("", "no steering", ""), _columns(base)),) if base else ()
    order = [*(name for name in named if name in steered), *(n for n in steered if n not in named)]
    made = []
    for name in order:
        own = steered[name]
        with_base = own if any(not one.sign for one in own) else [*own, *base]
        method = named.get(name) or Method(name, name.replace("_", " ") or "unnamed", "")
        made.append(CompletionRow(method, _columns(with_base)))
    return tuple(made)


def _completion(record: Row) -> Completion:
    strength = number(record.get("strength"))
    sign = number(record.get("sign"))
    if sign is None:
        sign = strength or 0.0
    direction = (sign > 0) - (sign < 0)
    return Completion(
        strength, direction, str(record.get("text") or ""), number(record.get("judge"))
    )


def _columns(texts: Sequence[Completion]) -> tuple[tuple[Completion, ...], ...]:
    columns: dict[tuple[int, float], list[Completion]] = {}
    for one in texts:
        size = abs(one.strength) if one.strength is not None else 0.0
        columns.setdefault((one.sign, one.sign * size), []).append(one)
    return tuple(tuple(columns[key]) for key in sorted(columns))


def _written_personas(metrics: Metrics) -> list[str]:
    return [*dict.fromkeys(str(row.get("persona")) for row in rows(metrics, "generation"))]


def _generation_row(metrics: Metrics, persona: str, method: str, sign: int) -> Row | None:
    """Return a line of the generation table; unsteered lines count for any KL target."""
    kl_target = headline_kl_target(metrics)
    for row in rows(metrics, "generation"):
        if row.get("persona") != persona or row.get("method") != method:
            continue
        if row.get("sign") == sign and (not sign or same(row.get("kl_target"), kl_target)):
            return row
    return None
