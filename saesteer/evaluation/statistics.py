"""How sure are we: intervals over personas, paired tests, nulls, areas and slopes.

Personas are the sample. Pairs of one persona share a topic and a style, so an interval over them
(`item_interval`) says nothing of other personas and is far too narrow for a claim about a method;
`hierarchical_bootstrap` and `paired_ratio` are what a claim rests on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from saesteer.utils.errors import DataError

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
DRAWS_AT_ONCE = 2_000_000

PersonaValues = np.ndarray | Sequence[np.ndarray] | None
"""One persona's values: [pair], [seed, pair], a row for each seed, or None where not measured."""


class Estimate(NamedTuple):
    """A figure with its interval over personas; None where it does not exist."""

    value: float | None
    low: float | None
    high: float | None
    n_personas: int


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
) -> Estimate:
    """Return the macro-mean over personas with a percentile interval; one persona has none.

    Personas are drawn with replacement, then pairs with replacement within each drawn persona
    and seed. Seeds are averaged and not drawn: what seeds and pairs add to the spread of a
    persona's mean is already in the spread between personas (Davison and Hinkley 1997, section
    3.8), and three seeds are too few to draw from. Rows of different seeds hold different pairs,
    so each is drawn on its own; where the same pairs were measured under every seed, average over
    seeds first and pass [pair]. A persona of None is left out.

    Raises:
        DataError: A persona has no values, or one that is not finite.
    """
    stacks = [stack for stack in _stacks([values]) if stack is not None]
    if not stacks:
        return Estimate(None, None, None, 0)
    drawn = _resampled_macro_means(stacks, resamples, seed)[:, 0]
    return _estimate(_macro_means(stacks)[0], drawn, len(stacks))


def paired_ratio(
    first: Sequence[PersonaValues],
    second: Sequence[PersonaValues],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Return the ratio of two methods' macro-means on the same personas, seeds and pairs.

    Every resample, as in `hierarchical_bootstrap`, draws the same personas and pairs for both, so
    what makes a persona easy or hard for both cancels; one that either lacks is left out of both.
    A ratio whose denominator is not above 0 has no meaning: in resamples it counts as infinite (of
    the numerator's sign), an end of the interval that is infinite is None, and where there are
    more of them than the interval's tail the ratio has no interval.

    Raises:
        ValueError: The two are not of the same personas, seeds and pairs.
        DataError: A persona has no values, or one that is not finite.
    """
    stacks = [stack for stack in _stacks([first, second]) if stack is not None]
    n = len(stacks)
    if not n:
        return Estimate(None, None, None, 0)
    above, below = _macro_means(stacks)
    if below <= 0:
        return Estimate(None, None, None, n)
    drawn = _resampled_macro_means(stacks, resamples, seed)
    positive = drawn[:, 1] > 0
    if n > 1 and (~positive).mean() > TAIL:
        return Estimate(above / below, None, None, n)
    ratios = np.copysign(np.inf, drawn[:, 0])
    with np.errstate(over="ignore"):
        np.divide(drawn[:, 0], drawn[:, 1], out=ratios, where=positive)
    value, *ends, _ = _estimate(above / below, ratios, n)
    low, high = (end if end is not None and math.isfinite(end) else None for end in ends)
    return Estimate(value, low, high, n)


def item_interval(
    values: Float[np.ndarray, " pair"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> ItemInterval:
    """Return the mean over one persona's pairs with a percentile interval over those pairs.

    Raises:
        DataError: There is no value, or one that is not finite.
    """
    row = _seed_rows(values, "the persona")[0]
    drawn = resampled_means(row[None], resamples, np.random.default_rng(seed))[:, 0]
    return ItemInterval(float(row.mean()), *percentiles(drawn))


def resampled_means(
    rows: Float[np.ndarray, "row item"], n: int, rng: np.random.Generator
) -> Float[np.ndarray, "n row"]:
    """Return n means over items drawn with replacement, the same draws for every row."""
    n_items = rows.shape[1]
    # A few at once, to bound memory.
    step = max(1, DRAWS_AT_ONCE // n_items)
    means = np.empty((n, len(rows)))
    for start in range(0, n, step):
        some = min(step, n - start)
        picked = rng.integers(n_items, size=(some, n_items)) + n_items * np.arange(some)[:, None]
        # How often each item was drawn: one product then serves every row.
        counts = np.bincount(picked.ravel(), minlength=some * n_items).reshape(some, n_items)
        means[start : start + some] = counts @ rows.T / n_items
    return means


def resample_counts(
    groups: Int[np.ndarray, " item"], n: int, rng: np.random.Generator
) -> Int[np.ndarray, "n item"]:
    """Return how often each item counts in n resamples of groups, which are drawn whole."""
    n_groups = int(groups.max()) + 1
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n)[:, groups]


def percentiles(drawn: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    """Return the ends of the interval that holds LEVEL of what was drawn."""
    # Interpolating beside an infinite value would give NaN.
    method = "linear" if np.isfinite(drawn).all() else "inverted_cdf"
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL], method=method)
    return float(low), float(high)


def _seed_rows(values: np.ndarray | Sequence[np.ndarray], where: str) -> list[np.ndarray]:
    """Return one persona's values as a row for each seed."""
    single = isinstance(values, np.ndarray) and values.ndim == 1
    rows = [np.asarray(row, dtype=float) for row in ([values] if single else values)]
    if not rows or any(row.ndim != 1 or not len(row) for row in rows):
        raise DataError(f"{where} has a seed without values; pass None to leave the persona out.")
    if not all(np.isfinite(row).all() for row in rows):
        raise DataError(f"{where} has a value that is not finite; leave that pair out.")
    return rows


def _stacks(methods: Sequence[Sequence[PersonaValues]]) -> list[list[np.ndarray] | None]:
    """Return for each persona its seeds' [method, pair]; None where a method lacks it."""
    stacks: list[list[np.ndarray] | None] = []
    for place, found in enumerate(zip(*methods, strict=True)):
        known = [values for values in found if values is not None]
        rows = [_seed_rows(values, f"persona {place}") for values in known]
        whole = len(known) == len(found)
        # Of other pairs or seeds than the other methods' they do not stack.
        stacks.append([np.stack(row) for row in zip(*rows, strict=True)] if whole else None)
    return stacks


def _macro_means(stacks: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Return each method's mean over personas of the mean over seeds of the mean over pairs."""
    own = [np.mean([row.mean(axis=1) for row in stack], axis=0) for stack in stacks]
    return np.mean(own, axis=0).tolist()


def _resampled_macro_means(
    stacks: Sequence[Sequence[Float[np.ndarray, "method pair"]]], resamples: int, seed: int
) -> Float[np.ndarray, "resample method"]:
    """Return each method's macro-mean in every resample, the same draws for all methods."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(stacks), size=(resamples, len(stacks)))
    totals = np.zeros((resamples, len(stacks[0][0])))
    for persona, rows in enumerate(stacks):
        # A persona that is drawn twice in a resample gets fresh pairs each time.
        where = np.nonzero(drawn == persona)[0]
        means = np.mean([resampled_means(row, len(where), rng) for row in rows], axis=0)
        for method in range(totals.shape[1]):
            totals[:, method] += np.bincount(where, means[:, method], minlength=resamples)
    return totals / len(stacks)


def _estimate(value: float, drawn: np.ndarray, n_personas: int) -> Estimate:
    ends = (None, None) if n_personas == 1 else percentiles(drawn)
    return Estimate(value, *ends, n_personas)


def wilcoxon_over_personas(
    first: Sequence[float | None], second: Sequence[float | None]
) -> float | None:
    """Return the two-sided p of a signed-rank test, each persona counting once (Wilcoxon 1945).

    Given are one figure for each persona, seeds and pairs averaged; None where not measured. The p
    is None where every persona ties or there is none. Fewer than 6 personas cannot reach 0.05.
    """
    from scipy.stats import wilcoxon

    pairs = zip(first, second, strict=True)
    kept = np.array([a - b for a, b in pairs if a is not None and b is not None], dtype=float)
    differences = kept[np.isfinite(kept) & (kept != 0)]
    if not len(differences):
        return None
    found: Any = wilcoxon(differences)
    return float(found.pvalue)


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
    sizes = np.abs(np.asarray(null, dtype=float))
    return (1 + int((sizes >= value).sum())) / (1 + len(sizes))


def area_values(by_target: Mapping[float, Sequence[PersonaValues]]) -> list[PersonaValues]:
    """Return each pair's area under effect against log KL, over the log range: nats per token.

    `hierarchical_bootstrap` of them gives the area of the means (trapezoids) with its interval.
    Given are the personas' values at each of two or more KL targets, in one order, of equal seeds
    and pairs; a persona that lacks one has no area.
    """
    kl_targets = sorted(by_target)
    logs = np.log(kl_targets)
    steps = np.diff(logs) / (logs[-1] - logs[0])
    weights = (np.append(steps, 0.0) + np.insert(steps, 0, 0.0)) / 2
    stacks = _stacks([by_target[kl_target] for kl_target in kl_targets])
    return [None if stack is None else [weights @ row for row in stack] for stack in stacks]


def pair_slopes(
    strengths: Sequence[float], margins: Float[np.ndarray, "strength pair"]
) -> Float[np.ndarray, " pair"]:
    """Return each pair's least-squares slope of its margin over two or more strengths."""
    x = np.asarray(strengths, dtype=float)
    centred = x - x.mean()
    return centred @ margins / (centred @ centred)
