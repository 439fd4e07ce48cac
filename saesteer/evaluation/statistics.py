"""How sure are we: intervals over personas, paired tests, nulls, areas and slopes.

Personas are the sample. Pairs of one persona share a topic and a style, so an interval over them
(`item_interval`) says nothing of other personas and is far too narrow for a claim about a method;
`hierarchical_bootstrap` and `compare_paired` are what a claim rests on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from saesteer.evaluation.resampling import (
    PersonaValues,
    macro_means,
    percentiles,
    resampled_macro_means,
    resampled_pair_means,
    seed_rows,
    stacks_of,
)
from saesteer.utils.errors import DataError, MismatchError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval over personas.

    Attributes:
        value: The figure; None where it does not exist.
        low: Lower end of the interval; None where there is none.
        high: Upper end.
        n_personas: Personas that it rests on.
        note: One sentence on what is missing; empty where nothing is.
    """

    value: float | None
    low: float | None
    high: float | None
    n_personas: int
    note: str = ""


@dataclass(frozen=True)
class PairedComparison:
    """Two methods on the same personas and pairs, every interval from the same resamples.

    Attributes:
        first: Macro-mean of the first method.
        second: Macro-mean of the second.
        difference: First minus second.
        ratio: First over second.
        not_above_zero: Share of resamples where the second's macro-mean is not above 0; where it
            exceeds the tail of the interval, the ratio has none.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    ratio: Estimate
    not_above_zero: float


class ItemInterval(NamedTuple):
    """A mean with an interval over the pairs of one persona; no claim about other personas."""

    mean: float
    low: float
    high: float


def hierarchical_bootstrap(
    values: Sequence[PersonaValues],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Return the macro-mean over personas with a percentile interval.

    Personas are drawn with replacement, then pairs with replacement within each drawn persona
    and seed. Seeds are averaged and not drawn: what seeds and pairs add to the spread of a
    persona's mean is already in the spread between personas (Davison and Hinkley 1997, section
    3.8), and three seeds are too few to draw from. Rows of different seeds hold different pairs,
    so each is drawn on its own; where the same pairs were measured under every seed, average over
    seeds first and pass [pair].

    Args:
        values: For each persona [pair], [seed, pair] or a row for each seed (of any lengths), in
            nats per token for effects; None leaves the persona out.
        resamples: Bootstrap resamples.
        seed: Seeds the draws; equal seeds and shapes give equal draws.
        level: Coverage of the interval.

    Raises:
        DataError: A persona has no values, or one that is not finite.
    """
    stacks = stacks_of([values])
    if not stacks:
        return Estimate(None, None, None, 0, "no persona has values.")
    return _estimate(
        macro_means(stacks)[0],
        resampled_macro_means(stacks, resamples, seed)[:, 0],
        len(stacks),
        level,
    )


def compare_paired(
    first: Sequence[PersonaValues],
    second: Sequence[PersonaValues],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
) -> PairedComparison:
    """Compare two methods' macro-means on the same personas, seeds and pairs.

    Every resample draws the same personas and pairs for both, so what makes a persona easy or
    hard for both cancels. Resamples as in `hierarchical_bootstrap`. A ratio whose denominator is
    not above 0 has no meaning: in resamples it counts as infinite (of the numerator's sign), and
    where there are more of them than the interval's tail the ratio has no interval.

    Args:
        first: As in `hierarchical_bootstrap`.
        second: The same personas, seeds and pairs; the ratio's denominator. A persona that either
            lacks is left out of both.
        resamples: Bootstrap resamples.
        seed: Seeds the draws.
        level: Coverage of the intervals.

    Raises:
        MismatchError: The two are not of the same personas, seeds and pairs.
        DataError: A persona has no values, or one that is not finite.
    """
    stacks = stacks_of([first, second])
    if not stacks:
        nothing = Estimate(None, None, None, 0, "no persona has values of both methods.")
        return PairedComparison(nothing, nothing, nothing, nothing, 0.0)
    a, b = macro_means(stacks)
    drawn = resampled_macro_means(stacks, resamples, seed)
    n = len(stacks)
    share = float((drawn[:, 1] <= 0).mean())
    return PairedComparison(
        _estimate(a, drawn[:, 0], n, level),
        _estimate(b, drawn[:, 1], n, level),
        _estimate(a - b, drawn[:, 0] - drawn[:, 1], n, level),
        _ratio(a, b, drawn, n, level),
        share,
    )


def item_interval(
    values: Float[np.ndarray, " pair"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
) -> ItemInterval:
    """Return the mean over one persona's pairs with a percentile interval over those pairs.

    Raises:
        DataError: There is no value, or one that is not finite.
    """
    row = seed_rows(values, "the persona")[0]
    drawn = resampled_pair_means(row[None], resamples, np.random.default_rng(seed))[:, 0]
    low, high = percentiles(drawn, level)
    return ItemInterval(float(row.mean()), low, high)


@dataclass(frozen=True)
class PairedTest:
    """A paired Wilcoxon signed-rank test over personas, two-sided.

    Attributes:
        p: The p value; None where every persona ties or there is none.
        statistic: The smaller sum of signed ranks.
        median_difference: Median over personas of first minus second.
        n_personas: Personas compared, ties left out.
        exact: Whether p is exact and not the normal approximation.
        note: Says when there are too few personas to reach p below 0.05.
    """

    p: float | None
    statistic: float | None
    median_difference: float | None
    n_personas: int
    exact: bool
    note: str = ""


def wilcoxon_over_personas(
    first: Sequence[float | None], second: Sequence[float | None]
) -> PairedTest:
    """Test whether two methods differ, each persona counting once (Wilcoxon 1945).

    Args:
        first: One figure for each persona, seeds and pairs averaged; None where not measured.
        second: The same personas in the same order.

    Raises:
        MismatchError: The two are not equally long.
    """
    from scipy.stats import wilcoxon

    if len(first) != len(second):
        raise MismatchError(
            f"first and second have {len(first)} and {len(second)} personas; pass the same ones."
        )
    pairs = zip(first, second, strict=True)
    kept = np.array([a - b for a, b in pairs if a is not None and b is not None], dtype=float)
    kept = kept[np.isfinite(kept)]
    median = float(np.median(kept)) if len(kept) else None
    differences = kept[kept != 0]
    n = len(differences)
    if n == 0:
        return PairedTest(None, None, median, 0, True, "no persona differs, so there is no p.")
    found: Any = wilcoxon(differences)
    # scipy enumerates without ties up to 50 differences, and every sign with ties up to 13.
    exact = n <= (50 if len(np.unique(np.abs(differences))) == n else 13)
    smallest = 2.0 / 2**n
    note = ""
    if smallest > 0.05:
        note = f"{n} personas cannot give a p below {smallest:.3g}; 6 are the fewest for 0.05."
    return PairedTest(float(found.pvalue), float(found.statistic), median, n, exact, note)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Correct p values for testing several methods (Holm 1979); None stays None, uncounted."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None and p == p)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for place, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * p))
        corrected[name] = largest
    return corrected


def permutation_p(value: float, null: Sequence[float]) -> float:
    """Return (1 + #{|null| >= value}) / (1 + n): one-sided, against a null of either sign."""
    if not np.isfinite(value):
        raise DataError(f"value: {value} is no figure to test; leave the method out.")
    sizes = np.abs(np.asarray(null, dtype=float))
    return (1 + int((sizes >= value).sum())) / (1 + len(sizes))


@dataclass(frozen=True)
class Area:
    """Area under effect against log KL, over the log range: nats per token.

    Attributes:
        value: The area; None with fewer than two KL targets reached.
        from_target: The least KL target reached, nats per token.
        to_target: The greatest.
        missing: KL targets that were not reached; one between others is bridged by a straight line,
            one at an end shortens the range, and areas of different ranges do not compare.
        note: Says so in words.
    """

    value: float | None
    from_target: float | None
    to_target: float | None
    missing: tuple[float, ...]
    note: str = ""


def area_under_log_kl(effects: Mapping[float, float | None]) -> Area:
    """Return the trapezoid area of effect over ln(KL target), divided by the log range.

    Args:
        effects: Effect at each KL target, nats per token; None where it was not reached.
    """
    reached = {b: e for b, e in sorted(effects.items()) if e is not None and math.isfinite(e)}
    missing = tuple(sorted(set(effects) - set(reached)))
    names = ", ".join(f"{kl_target:g}" for kl_target in missing)
    if len(reached) < 2:
        note = "fewer than two KL targets were reached" + (
            f" (missing: {names})." if names else "."
        )
        return Area(None, None, None, missing, note)
    weights = area_weights(tuple(reached))
    value = sum(weights[kl_target] * effect for kl_target, effect in reached.items())
    least, greatest = min(reached), max(reached)
    note = ""
    if missing:
        note = f"KL target {names} not reached: the area is over {least:g} to {greatest:g}."
    return Area(float(value), least, greatest, missing, note)


def area_weights(kl_targets: Sequence[float]) -> dict[float, float]:
    """Return the weight of each KL target's effect in the area; weights sum to 1.

    Raises:
        DataError: There are fewer than two different KL targets, or one is not above 0.
    """
    ordered = sorted(set(kl_targets))
    if len(ordered) < 2 or ordered[0] <= 0:
        raise DataError(f"kl_targets: {list(kl_targets)} are not two or more KL targets above 0.")
    logs = np.log(ordered)
    steps = np.diff(logs) / (logs[-1] - logs[0])
    shares = (np.append(steps, 0.0) + np.insert(steps, 0, 0.0)) / 2
    return dict(zip(ordered, shares.tolist(), strict=True))


def area_values(by_target: Mapping[float, Sequence[PersonaValues]]) -> list[PersonaValues]:
    """Return each pair's own area, so that `hierarchical_bootstrap` gives the area's interval.

    Args:
        by_target: The personas' values at each KL target, in one order, of equal seeds and pairs.

    Returns:
        A row for each seed for each persona; None for a persona that lacks a KL target.
    """
    weights = area_weights(tuple(by_target))
    kl_targets = sorted(by_target)
    stacks = stacks_of([by_target[kl_target] for kl_target in kl_targets], keep_empty=True)
    factors = np.array([weights[kl_target] for kl_target in kl_targets])
    return [None if stack is None else [factors @ row for row in stack] for stack in stacks]


def pair_slopes(
    strengths: Sequence[float], margins: Float[np.ndarray, "strength pair"]
) -> Float[np.ndarray, " pair"]:
    """Return each pair's least-squares slope of its margin over strength.

    Args:
        strengths: Such as the multiples -1.5 to 1.5 of the matched strength.
        margins: m_i at each, nats per token.

    Raises:
        DataError: There are fewer than two different strengths, or not one for each row.
    """
    x = np.asarray(strengths, dtype=float)
    if margins.ndim != 2 or len(margins) != len(x):
        raise DataError(f"margins: {margins.shape} is not one row for each of {len(x)} strengths.")
    centred = x - x.mean() if len(x) else x
    if not (centred @ centred > 0):
        raise DataError("strengths: a slope needs two different strengths.")
    return centred @ margins / (centred @ centred)


def anti_steerable_share(slopes: Float[np.ndarray, " pair"]) -> float | None:
    """Return the share of pairs that move against the strength (slope below 0); None of none."""
    return float((np.asarray(slopes) < 0).mean()) if len(slopes) else None


def _estimate(value: float, drawn: np.ndarray, n_personas: int, level: float) -> Estimate:
    if n_personas == 1:
        note = "one persona has no interval over personas; `item_interval` is over its pairs."
        return Estimate(value, None, None, 1, note)
    return Estimate(value, *percentiles(drawn, level), n_personas)


def _ratio(
    first: float,
    second: float,
    drawn: Float[np.ndarray, "resample method"],
    n_personas: int,
    level: float,
) -> Estimate:
    positive: Bool[np.ndarray, " resample"] = drawn[:, 1] > 0
    share = float((~positive).mean())
    if second <= 0:
        note = f"the second's mean, {second:.3g}, is not above 0, so there is no ratio."
        return Estimate(None, None, None, n_personas, note)
    if share > (1 - level) / 2 and n_personas > 1:
        note = f"the second's mean is not above 0 in {share:.1%} of resamples: no interval."
        return Estimate(first / second, None, None, n_personas, note)
    ratios = np.copysign(np.inf, drawn[:, 0])
    with np.errstate(over="ignore"):
        np.divide(drawn[:, 0], drawn[:, 1], out=ratios, where=positive)
    found = _estimate(first / second, ratios, n_personas, level)
    if all(end is None or math.isfinite(end) for end in (found.low, found.high)):
        return found
    low, high = (e if e is not None and math.isfinite(e) else None for e in (found.low, found.high))
    return Estimate(found.value, low, high, n_personas, "one end of the ratio is unbounded.")
