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
from jaxtyping import Float

from saesteer.utils.errors import DataError, MismatchError

LEVEL = 0.95
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
    level: float = LEVEL,
) -> Estimate:
    """Return the macro-mean over personas with a percentile interval.

    Personas are drawn with replacement, then pairs with replacement within each drawn persona
    and seed. Seeds are averaged and not drawn: what seeds and pairs add to the spread of a
    persona's mean is already in the spread between personas (Davison and Hinkley 1997, section
    3.8), and three seeds are too few to draw from. Rows of different seeds hold different pairs,
    so each is drawn on its own; where the same pairs were measured under every seed, average over
    seeds first and pass [pair]. One persona has no interval.

    Args:
        values: For each persona [pair], [seed, pair] or a row for each seed (of any lengths), in
            nats per token for effects; None leaves the persona out.
        resamples: Bootstrap resamples.
        seed: Seeds the draws; equal seeds and shapes give equal draws.
        level: Coverage of the interval.

    Raises:
        DataError: A persona has no values, or one that is not finite.
    """
    stacks = _known(_stacks([values]))
    if not stacks:
        return Estimate(None, None, None, 0)
    drawn = _resampled_macro_means(stacks, resamples, seed)[:, 0]
    return _estimate(_macro_means(stacks)[0], drawn, len(stacks), level)


def paired_ratio(
    first: Sequence[PersonaValues],
    second: Sequence[PersonaValues],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Return the ratio of two methods' macro-means on the same personas, seeds and pairs.

    Every resample draws the same personas and pairs for both, so what makes a persona easy or
    hard for both cancels. Resamples as in `hierarchical_bootstrap`. A ratio whose denominator is
    not above 0 has no meaning: in resamples it counts as infinite (of the numerator's sign), an
    end of the interval that is infinite is None, and where there are more of them than the
    interval's tail the ratio has no interval.

    Args:
        first: As in `hierarchical_bootstrap`.
        second: The same personas, seeds and pairs; the denominator. A persona that either lacks is
            left out of both.
        resamples: Bootstrap resamples.
        seed: Seeds the draws.
        level: Coverage of the interval.

    Raises:
        MismatchError: The two are not of the same personas, seeds and pairs.
        DataError: A persona has no values, or one that is not finite.
    """
    stacks = _known(_stacks([first, second]))
    n = len(stacks)
    if not n:
        return Estimate(None, None, None, 0)
    above, below = _macro_means(stacks)
    if below <= 0:
        return Estimate(None, None, None, n)
    drawn = _resampled_macro_means(stacks, resamples, seed)
    positive = drawn[:, 1] > 0
    if n > 1 and (~positive).mean() > (1 - level) / 2:
        return Estimate(above / below, None, None, n)
    ratios = np.copysign(np.inf, drawn[:, 0])
    with np.errstate(over="ignore"):
        np.divide(drawn[:, 0], drawn[:, 1], out=ratios, where=positive)
    value, *ends, _ = _estimate(above / below, ratios, n, level)
    low, high = (end if end is not None and math.isfinite(end) else None for end in ends)
    return Estimate(value, low, high, n)


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
    row = _seed_rows(values, "the persona")[0]
    drawn = _resampled_pair_means(row[None], resamples, np.random.default_rng(seed))[:, 0]
    return ItemInterval(float(row.mean()), *_percentiles(drawn, level))


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
    if len({len(personas) for personas in methods}) > 1:
        counts = " and ".join(str(len(personas)) for personas in methods)
        raise MismatchError(f"methods have {counts} personas; pass the same ones in one order.")
    stacks: list[list[np.ndarray] | None] = []
    for place, found in enumerate(zip(*methods, strict=True)):
        known = [values for values in found if values is not None]
        if len(known) < len(found):
            stacks.append(None)
            continue
        where = f"persona {place}"
        rows = [_seed_rows(values, where) for values in known]
        if len({tuple(len(row) for row in own) for own in rows}) > 1:
            raise MismatchError(f"{where} has other seeds or pairs; pass the same for all methods.")
        stacks.append([np.stack(of_seed) for of_seed in zip(*rows, strict=True)])
    return stacks


def _known(stacks: Sequence[list[np.ndarray] | None]) -> list[list[np.ndarray]]:
    return [stack for stack in stacks if stack is not None]


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
        means = np.mean([_resampled_pair_means(row, len(where), rng) for row in rows], axis=0)
        for method in range(totals.shape[1]):
            totals[:, method] += np.bincount(where, means[:, method], minlength=resamples)
    return totals / len(stacks)


def _resampled_pair_means(
    row: Float[np.ndarray, "method pair"], n: int, rng: np.random.Generator
) -> Float[np.ndarray, "n method"]:
    """Return n means over pairs drawn with replacement, a few at once to bound memory."""
    n_pairs = row.shape[1]
    step = max(1, DRAWS_AT_ONCE // n_pairs)
    means = np.empty((n, len(row)))
    for start in range(0, n, step):
        some = min(step, n - start)
        picked = rng.integers(n_pairs, size=(some, n_pairs)) + n_pairs * np.arange(some)[:, None]
        # How often each pair was drawn: one product then serves every method.
        counts = np.bincount(picked.ravel(), minlength=some * n_pairs).reshape(some, n_pairs)
        means[start : start + some] = counts @ row.T / n_pairs
    return means


def _estimate(value: float, drawn: np.ndarray, n_personas: int, level: float) -> Estimate:
    ends = (None, None) if n_personas == 1 else _percentiles(drawn, level)
    return Estimate(value, *ends, n_personas)


def _percentiles(drawn: Float[np.ndarray, " resample"], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    # Interpolating beside an infinite value would give NaN.
    method = "linear" if np.isfinite(drawn).all() else "inverted_cdf"
    low, high = np.quantile(drawn, [tail, 1 - tail], method=method)
    return float(low), float(high)


def wilcoxon_over_personas(
    first: Sequence[float | None], second: Sequence[float | None]
) -> float | None:
    """Return the two-sided p of a signed-rank test, each persona counting once (Wilcoxon 1945).

    Args:
        first: One figure for each persona, seeds and pairs averaged; None where not measured.
        second: The same personas in the same order.

    Returns:
        p; None where every persona ties or there is none. Fewer than 6 personas cannot reach 0.05.

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
    if not np.isfinite(value):
        raise DataError(f"value: {value} is no figure to test; leave the method out.")
    sizes = np.abs(np.asarray(null, dtype=float))
    return (1 + int((sizes >= value).sum())) / (1 + len(sizes))


def area_values(by_target: Mapping[float, Sequence[PersonaValues]]) -> list[PersonaValues]:
    """Return each pair's area under effect against log KL, over the log range: nats per token.

    `hierarchical_bootstrap` of them gives the area of the means (trapezoids) with its interval.

    Args:
        by_target: The personas' values at each KL target, in one order, of equal seeds and pairs.

    Returns:
        A row for each seed for each persona; None for a persona that lacks a KL target.

    Raises:
        DataError: There are fewer than two KL targets, or one is not above 0.
    """
    kl_targets = sorted(by_target)
    if len(kl_targets) < 2 or kl_targets[0] <= 0:
        raise DataError(f"kl_targets: {kl_targets} are not two or more KL targets above 0.")
    logs = np.log(kl_targets)
    steps = np.diff(logs) / (logs[-1] - logs[0])
    weights = (np.append(steps, 0.0) + np.insert(steps, 0, 0.0)) / 2
    stacks = _stacks([by_target[kl_target] for kl_target in kl_targets])
    return [None if stack is None else [weights @ row for row in stack] for stack in stacks]


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
