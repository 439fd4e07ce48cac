"""Data of the likelihood part: headline, effect by KL, personas, methods, strengths."""

from __future__ import annotations

from typing import NamedTuple

from saesteer.report.reading import (
    Method,
    Metrics,
    Point,
    Row,
    headline_kl_target,
    kl_targets,
    mean,
    methods,
    number,
    personas,
    point,
    rows,
    same,
    spoken,
)


class NullVerdict(NamedTuple):
    """The headline method against its null, persona by persona.

    Attributes:
        beyond: Personas where the effect exceeds every |null effect|.
        within: Personas where it does not.
        n_draws: The fewest null draws of a persona.
        largest_p: The largest permutation p.
    """

    beyond: tuple[str, ...]
    within: tuple[str, ...]
    n_draws: int
    largest_p: float | None


class Headline(NamedTuple):
    """What the comparison found, at the headline KL target."""

    method: Method
    baseline: Method | None
    kl_target: float
    n_personas: int
    effect: Point
    ratio: Point
    p: float | None
    p_holm: float | None
    null: NullVerdict


class TargetCurve(NamedTuple):
    """A method's macro-mean effect at each KL target that it reached."""

    method: Method
    kl_targets: tuple[float, ...]
    points: tuple[Point, ...]


class PersonaEffect(NamedTuple):
    """One method on one persona: means over seeds of the effect and of the ends of its interval
    over pairs, and each seed's own effect."""

    point: Point
    seeds: tuple[float, ...]


class ForestRow(NamedTuple):
    """A persona in the forest plot."""

    persona: str
    own: bool
    headline: PersonaEffect
    baseline: PersonaEffect
    null: tuple[float, ...]


class MethodRow(NamedTuple):
    """A method in the table of all methods.

    Attributes:
        method: The method.
        effects: Its macro-mean at each KL target.
        area: Area under effect against log KL.
        ratio: Ratio to the baseline at the headline KL target.
        p: Wilcoxon's p against the baseline.
        p_holm: The same after Holm's correction.
        beyond_null: As in the summary.
        n_personas: Personas that reached the headline KL target.
        anti_steerable: Mean share of pairs with a slope below 0.
        common_shift: Mean of what moved both sides alike, nats per token.
    """

    method: Method
    effects: dict[float, Point]
    area: Point
    ratio: Point
    p: float | None
    p_holm: float | None
    beyond_null: object
    n_personas: int | None
    anti_steerable: float | None
    common_shift: float | None


class StrengthCurve(NamedTuple):
    """Mean change of the margin against no steering, by multiple of the matched strength."""

    method: Method
    multiples: tuple[float, ...]
    changes: tuple[float, ...]
    n_personas: int


def headline_data(metrics: Metrics) -> Headline | None:
    """Take the headline out of a comparison's metrics; None where nothing was summarised."""
    kl_target = headline_kl_target(metrics)
    name = metrics.get("headline_method")
    found = _summary_row(metrics, name, kl_target)
    if found is None or kl_target is None:
        return None
    named = {method.name: method for method in methods(metrics)}
    n = number(found.get("n_personas"))
    return Headline(
        named[str(name)],
        named.get(str(metrics.get("baseline"))),
        kl_target,
        int(n) if n is not None else len(personas(metrics)),
        point(found),
        point(found, "ratio", "ratio_"),
        number(found.get("p")),
        number(found.get("p_holm")),
        _null_verdict(metrics),
    )


def target_data(metrics: Metrics) -> list[TargetCurve]:
    """Take each method's effect by KL target out of the metrics; methods without one left out."""
    curves = []
    for method in methods(metrics):
        found = {b: point(_summary_row(metrics, method.name, b)) for b in kl_targets(metrics)}
        reached = {kl_target: p for kl_target, p in found.items() if p.value is not None}
        if reached:
            curves.append(TargetCurve(method, tuple(reached), tuple(reached.values())))
    return curves


def forest_data(metrics: Metrics) -> list[ForestRow]:
    """Take the personas' effects at the headline KL target, strongest first."""
    own = {str(row.get("name")): bool(row.get("own")) for row in rows(metrics, "personas")}
    found = [
        ForestRow(
            persona,
            own.get(persona, False),
            persona_effect(metrics, persona, metrics.get("headline_method")),
            persona_effect(metrics, persona, metrics.get("baseline")),
            _null_effects(metrics, persona),
        )
        for persona in personas(metrics)
    ]
    kept = [
        row for row in found if row.null or any(p.point.value is not None for p in (row[2], row[3]))
    ]
    return sorted(
        kept, key=lambda r: -(r.headline.point.value if r.headline.point.value is not None else -9)
    )


def persona_effect(metrics: Metrics, persona: str, method: object) -> PersonaEffect:
    """Return a method's effect on a persona at the headline KL target."""
    kl_target = headline_kl_target(metrics)
    found = [
        row
        for row in rows(metrics, "effects")
        if row.get("persona") == persona
        and row.get("method") == method
        and same(row.get("kl_target"), kl_target)
        and number(row.get("effect")) is not None
    ]
    ends = (mean(row.get(name) for row in found) for name in ("effect", "low", "high"))
    return PersonaEffect(Point(*ends), tuple(float(row["effect"]) for row in found))


def method_table(metrics: Metrics) -> list[MethodRow]:
    """Take the table of all methods out of the metrics."""
    headline = headline_kl_target(metrics)
    areas = {str(row.get("method")): row for row in rows(metrics, "areas")}
    table = []
    for method in methods(metrics):
        found = _summary_row(metrics, method.name, headline)
        own = [
            row
            for row in rows(metrics, "effects")
            if row.get("method") == method.name and same(row.get("kl_target"), headline)
        ]
        n = number(found.get("n_personas")) if found else None
        table.append(
            MethodRow(
                method,
                {b: point(_summary_row(metrics, method.name, b)) for b in kl_targets(metrics)},
                point(areas.get(method.name), "area"),
                point(found, "ratio", "ratio_"),
                number(found.get("p")) if found else None,
                number(found.get("p_holm")) if found else None,
                found.get("beyond_null") if found else None,
                int(n) if n is not None else None,
                mean(row.get("anti_steerable") for row in own),
                mean(row.get("common_shift") for row in own),
            )
        )
    return table


def missed_targets(metrics: Metrics) -> list[tuple[Method, float, int, int]]:
    """Return (method, KL target, missed, measured) for each method that missed a KL target."""
    missed = []
    for method in methods(metrics):
        for kl_target in kl_targets(metrics):
            own = [
                row
                for row in rows(metrics, "effects")
                if row.get("method") == method.name and same(row.get("kl_target"), kl_target)
            ]
            n = sum(number(row.get("effect")) is None for row in own)
            if n:
                missed.append((method, kl_target, n, len(own)))
    return missed


def strength_data(metrics: Metrics) -> list[StrengthCurve]:
    """Take the margins over strengths: change against multiple 0, averaged over personas."""
    curves = []
    for method in methods(metrics):
        changes: dict[float, list[float]] = {}
        seen = set()
        runs: dict[tuple[str, str], list[Row]] = {}
        for row in rows(metrics, "curves"):
            if row.get("method") == method.name:
                runs.setdefault((str(row.get("persona")), str(row.get("seed"))), []).append(row)
        for (persona, _), run in runs.items():
            margins = {number(row.get("multiple")): number(row.get("margin")) for row in run}
            base = margins.get(0.0)
            if base is None:
                continue
            seen.add(persona)
            for multiple, margin in margins.items():
                if multiple is not None and margin is not None:
                    changes.setdefault(multiple, []).append(margin - base)
        if changes:
            ordered = sorted(changes)
            means = tuple(sum(changes[m]) / len(changes[m]) for m in ordered)
            curves.append(StrengthCurve(method, tuple(ordered), means, len(seen)))
    return curves


def _summary_row(metrics: Metrics, method: object, kl_target: float | None) -> Row | None:
    for row in rows(metrics, "summary"):
        if row.get("method") == method and same(row.get("kl_target"), kl_target):
            return row
    return None


def _null_effects(metrics: Metrics, persona: str) -> tuple[float, ...]:
    return tuple(
        found
        for row in rows(metrics, "null")
        if row.get("persona") == persona
        for value in row.get("effects") or []
        if (found := number(value)) is not None
    )


def _null_verdict(metrics: Metrics) -> NullVerdict:
    beyond, within, counts = [], [], []
    for persona in personas(metrics):
        own = [row for row in rows(metrics, "null") if row.get("persona") == persona]
        effect = persona_effect(metrics, persona, metrics.get("headline_method")).point.value
        effects = _null_effects(metrics, persona)
        named = [n for row in own if (n := number(row.get("largest"))) is not None]
        sizes = [*(abs(value) for value in effects), *named]
        if not sizes or effect is None:
            continue
        counts.append(len(effects))
        (beyond if effect > max(sizes) else within).append(spoken(persona))
    p_values = [p for row in rows(metrics, "null") if (p := number(row.get("p"))) is not None]
    return NullVerdict(
        tuple(beyond), tuple(within), min(counts, default=0), max(p_values, default=None)
    )
