"""Draws of the hierarchical bootstrap: personas, then pairs within each; many methods at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saesteer.utils.errors import DataError, MismatchError

PersonaValues = np.ndarray | Sequence[np.ndarray] | None
"""One persona's values: [pair], [seed, pair], a row for each seed, or None where not measured."""

DRAWS_AT_ONCE = 2_000_000


def seed_rows(values: np.ndarray | Sequence[np.ndarray], where: str) -> list[np.ndarray]:
    """Return one persona's values as a row for each seed.

    Args:
        values: [pair], [seed, pair] or a row for each seed, of any lengths.
        where: What an error calls the persona.

    Raises:
        DataError: A seed has no values, or one that is not finite.
    """
    single = isinstance(values, np.ndarray) and values.ndim == 1
    rows = [np.asarray(row, dtype=float) for row in ([values] if single else values)]
    if not rows or any(row.ndim != 1 or not len(row) for row in rows):
        raise DataError(f"{where} has a seed without values; pass None to leave the persona out.")
    if not all(np.isfinite(row).all() for row in rows):
        raise DataError(f"{where} has a value that is not finite; leave that pair out.")
    return rows


def stacks_of(methods: Sequence[Sequence[PersonaValues]], *, keep_empty: bool = False) -> list:
    """Return for each persona its seeds' [method, pair].

    Args:
        methods: For each method the personas' values, in one order.
        keep_empty: Give None for a persona that a method lacks, rather than leave it out.

    Raises:
        MismatchError: The methods are not of the same personas, seeds and pairs.
        DataError: A seed has no values, or one that is not finite.
    """
    if len({len(personas) for personas in methods}) > 1:
        counts = " and ".join(str(len(personas)) for personas in methods)
        raise MismatchError(f"methods have {counts} personas; pass the same ones in one order.")
    stacks: list[list[np.ndarray] | None] = []
    for place, found in enumerate(zip(*methods, strict=True)):
        if any(values is None for values in found):
            stacks.append(None)
            continue
        where = f"persona {place}"
        rows = [seed_rows(values, where) for values in found if values is not None]
        shapes = {tuple(len(row) for row in own) for own in rows}
        if len(shapes) > 1:
            raise MismatchError(f"{where} has other seeds or pairs; pass the same for all methods.")
        stacks.append([np.stack(of_seed) for of_seed in zip(*rows, strict=True)])
    return stacks if keep_empty else [stack for stack in stacks if stack is not None]


def macro_means(stacks: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Return each method's mean over personas of the mean over seeds of the mean over pairs."""
    own = [np.mean([row.mean(axis=1) for row in stack], axis=0) for stack in stacks]
    return np.mean(own, axis=0).tolist()


def resampled_macro_means(
    stacks: Sequence[Sequence[Float[np.ndarray, "method pair"]]], resamples: int, seed: int
) -> Float[np.ndarray, "resample method"]:
    """Return each method's macro-mean in every resample, the same draws for all methods.

    Args:
        stacks: For each persona, for each seed, all methods' values.
        resamples: How many.
        seed: Seeds the draws; they depend on it and on the shapes alone.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(stacks), size=(resamples, len(stacks)))
    totals = np.zeros((resamples, len(stacks[0][0])))
    for persona, rows in enumerate(stacks):
        # A persona that is drawn twice in a resample gets fresh pairs each time.
        where = np.nonzero(drawn == persona)[0]
        means = np.mean([resampled_pair_means(row, len(where), rng) for row in rows], axis=0)
        for method in range(totals.shape[1]):
            totals[:, method] += np.bincount(where, means[:, method], minlength=resamples)
    return totals / len(stacks)


def resampled_pair_means(
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


def percentiles(drawn: Float[np.ndarray, " resample"], level: float) -> tuple[float, float]:
    """Return the ends of the central interval of that coverage; infinite draws are allowed."""
    tail = (1 - level) / 2
    # Interpolating beside an infinite value would give NaN.
    method = "linear" if np.isfinite(drawn).all() else "inverted_cdf"
    low, high = np.quantile(drawn, [tail, 1 - tail], method=method)
    return float(low), float(high)
