"""What many prompt pairs say together: effects, intervals, places in prompts, and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from saesteer.evaluation.statistics import LEVEL, resample_counts
from saesteer.patching.batch import REVERSED, Mode, PairBatch, direction_of
from saesteer.patching.result import PatchResult
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Scale = Literal["share", "change"]
FIRST, BEFORE, DIFFERS, AFTER, ANSWER, OTHER = (
    "first token",
    "same beginning",
    "words that differ",
    "same end",
    "answer position",
    "other words",
)
RESAMPLES = 2000
PLACES = (FIRST, BEFORE, DIFFERS, AFTER, ANSWER, OTHER)


class Effects(NamedTuple):
    """A patch's effect on all prompts together, cell by cell."""

    # NaN where no pair has the cell.
    value: Float[np.ndarray, " *cells"]
    # Its 95% bootstrap interval over pairs.
    low: Float[np.ndarray, " *cells"]
    high: Float[np.ndarray, " *cells"]
    # How many pairs have the cell.
    n: Float[np.ndarray, " *cells"]


def draws_of(names: Sequence[str]) -> Int[np.ndarray, " pair"]:
    """Return for each pair the number of what is drawn with it: itself and its reverse.

    A pair used both ways round is one sample, whose two directions share every word; bootstraps
    that drew them apart would give intervals too narrow.
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(n.removesuffix(REVERSED), len(numbers)) for n in names])


def sample_means(
    values: Float[np.ndarray, "pair ..."], names: Sequence[str]
) -> Float[np.ndarray, "sample ..."]:
    """Return the means over each pair and its reverse, where it has one."""
    drawn = draws_of(names)
    return np.stack([values[drawn == number].mean(axis=0) for number in np.unique(drawn)])


def mean_interval(
    values: Float[np.ndarray, "sample ..."], *, seed: int = 0
) -> tuple[Float[np.ndarray, ...], Float[np.ndarray, ...], Float[np.ndarray, ...]]:
    """Return the mean over samples with the ends of its 95% bootstrap interval; NaN for one."""
    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    rng = np.random.default_rng(seed)
    drawn = resample_counts(np.arange(len(values)), RESAMPLES, rng) @ values / len(values)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return mean, low, high


def has_gap(
    clean: Float[np.ndarray, " pair"],
    corrupted: Float[np.ndarray, " pair"],
    names: Sequence[str],
    *,
    seed: int = 0,
) -> bool:
    """Return whether clean prompts score above corrupted ones beyond what chance would do.

    Without such a gap there is nothing for a patch to restore, and a share of it means nothing.
    """
    gaps = sample_means(clean - corrupted, names) if len(clean) else clean
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) < 2:
        return bool(len(gaps) and gaps[0] > 0)
    return bool(mean_interval(gaps, seed=seed)[1] > 0)


def effects(
    result: PatchResult, scale: Scale, *, resamples: int = RESAMPLES, seed: int = 0
) -> Effects:
    """Return every cell's effect over all pairs that have it, with bootstrap intervals.

    A share is the summed change over the summed gap, so that a pair whose clean and corrupted
    metric almost agree cannot drown the others, as it would in a mean of ratios.

    Args:
        result: One number for each pair and cell.
        scale: "share": 0 nothing, 1 all that separates clean from corrupted (-1 when noising).
            "change": the metric's own units.
        resamples: Bootstrap resamples over pairs; 0 for no intervals.
        seed: Seeds them.
    """
    shape = result.values.shape[1:]
    pairs = len(result.values)
    change = result.change.reshape(pairs, -1)
    there: Bool[np.ndarray, "pair cell"] = np.isfinite(change)
    change = np.where(there, change, 0.0)
    gap = np.where(there, (result.clean - result.corrupted)[:, None], 0.0)
    below = gap if scale == "share" else there.astype(float)
    value = _over(change.sum(axis=0), below.sum(axis=0))
    low = high = np.full(value.shape, np.nan)
    drawn_with = draws_of(result.pairs)
    if resamples and drawn_with.max(initial=0) > 0:
        counts = resample_counts(drawn_with, resamples, np.random.default_rng(seed)).astype(float)
        member = drawn_with == np.arange(drawn_with.max() + 1)[:, None]
        samples = ((member.astype(float) @ there) > 0).sum(axis=0)
        low, high = np.full((2, value.size), np.nan)
        # A few cells at once, to bound memory.
        for start in range(0, value.size, 4096):
            part = slice(start, start + 4096)
            drawn = _over(counts @ change[:, part], counts @ below[:, part])
            known = np.isfinite(drawn).any(axis=0) & (samples[part] > 1)
            if known.any():
                tail = (1 - LEVEL) / 2
                ends = np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
                low[part][known], high[part][known] = ends
    n = there.sum(axis=0).astype(float)
    return Effects(*(part.reshape(shape) for part in (value, low, high, n)))


def strongest_cells(
    result: PatchResult, scale: Scale, most: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the cells of the largest |effect|, as records with labels and interval."""
    value, low, high, _ = effects(result, scale, resamples=resamples, seed=seed)
    rows: list[dict[str, Any]] = []
    for place in np.argsort(-np.nan_to_num(np.abs(value.ravel())), kind="stable")[:most]:
        at = np.unravel_index(place, value.shape)
        labels = {dim: result.coords[dim][int(i)] for dim, i in zip(result.dims, at, strict=True)}
        ends = {"effect": float(value[at]), "low": float(low[at]), "high": float(high[at])}
        rows.append({**labels, **ends})
    return rows


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.divide(above, below, out=out, where=below != 0)


def token_groups(batch: PairBatch, mode: Mode) -> tuple[tuple[str, ...], ...]:
    """Name every column of every pair's destination prompt by what stands there.

    Prompts of different lengths and frames have their words in different columns; the names say
    what is comparable. Pairs with roles have their roles; the others the equal beginning, the
    words that differ, the equal end, and the answer position.
    Padding has the name "".
    """
    direction = direction_of(batch, mode)
    masks, counterparts = direction.mask.cpu().numpy(), direction.to_source.cpu().numpy()
    words = batch.corrupted_words, batch.clean_words
    own, theirs = words if mode == "denoising" else words[::-1]
    with_roles = all(pair.roles for pair in batch.pairs)
    names = []
    for row, (real, other) in enumerate(zip(masks, counterparts, strict=True)):
        if with_roles:
            at = {batch.role_column(row, role): role for role in batch.pairs[row].roles}
            here = _roles(real, other if mode == "denoising" else np.arange(batch.width), at)
        else:
            same = [at >= 0 and own[row][c] == theirs[row][at] for c, at in enumerate(other)]
            here = _sections(real, same)
        names.append(tuple(here))
    return tuple(names)


def _roles(
    real: Bool[np.ndarray, " pos"], clean_column: np.ndarray, at: dict[int, str]
) -> list[str]:
    first = int(np.argmax(real))
    names = []
    for column, there in enumerate(real):
        role = at.get(int(clean_column[column]))
        if not there:
            names.append("")
        elif column == len(real) - 1:
            names.append(ANSWER)
        else:
            names.append(role or (FIRST if column == first else OTHER))
    return names


def _sections(real: Bool[np.ndarray, " pos"], same: Sequence[bool]) -> list[str]:
    first = int(np.argmax(real))
    differs = [c for c in range(len(real)) if real[c] and not same[c]]
    start, stop = (differs[0], differs[-1]) if differs else (len(real), len(real))
    names = []
    for column, there in enumerate(real):
        if not there:
            names.append("")
        elif column == len(real) - 1:
            names.append(ANSWER)
        elif column < start:
            names.append(FIRST if column == first else BEFORE)
        else:
            names.append(DIFFERS if column <= stop else AFTER)
    return names


def by_place(result: PatchResult, names: Sequence[Sequence[str]]) -> PatchResult:
    """Sum the changes of each pair's positions of one name; the axis "position" becomes "place".

    The sum is to first order what patching these positions together would do; `names` are those of
    `token_groups`.
    """
    axis = 1 + result.dims.index("position")
    columns = result.coords["position"]
    change = np.moveaxis(result.change, axis, 1)
    labels = np.array([[row[int(column)] for column in columns] for row in names])
    places = _in_order(labels)
    summed = np.full((len(change), len(places), *change.shape[2:]), np.nan)
    for number, place in enumerate(places):
        chosen = (labels == place).reshape(*labels.shape, *(1,) * (change.ndim - 2))
        there = chosen & np.isfinite(change)
        total = np.where(there, change, 0.0).sum(axis=1)
        summed[:, number] = np.where(there.any(axis=1), total, np.nan)
    values = np.moveaxis(summed, 1, axis) + result.origin
    named = {"position": ("place", tuple(places))}
    coords = dict(named.get(dim, (dim, labels)) for dim, labels in result.coords.items())
    return replace(result, coords=coords, values=values, tokens=())


def _in_order(labels: np.ndarray) -> list[str]:
    """Return the names in the order in which they mostly stand, the answer position last."""
    where: dict[str, list[int]] = {}
    for row in labels:
        for column, name in enumerate(row):
            if name:
                where.setdefault(str(name), []).append(column)
    last = {OTHER: 1, ANSWER: 2}
    return sorted(where, key=lambda name: (last.get(name, 0), float(np.mean(where[name]))))


@dataclass(frozen=True)
class Agreement:
    """The cells that two results share, with their mean effects."""

    # How the approximation was found.
    method: str
    # The axes of the cells, and every cell's label along each.
    dims: tuple[str, ...]
    labels: tuple[tuple[int | str, ...], ...]
    # The mean effect of every cell, by the approximation and by activation patching.
    approximate: Float[np.ndarray, " cell"]
    actual: Float[np.ndarray, " cell"]
    # Spearman's; NaN with fewer than three cells or where one of the two is the same in all. Every
    # cell counts alike in it, so that in half precision it is mostly about cells whose effect is
    # rounding.
    rank_correlation: float
    # Pearson's, which the strong cells make; NaN as above.
    correlation: float
    # Of the `top_k` cells of largest actual effect, either way: the share that are among the
    # approximation's `top_k` too, and the share whose approximate effect has the right sign.
    top_k: int
    overlap: float
    same_sign: float

    def frame(self) -> pd.DataFrame:
        """Return one row per cell: its labels, approximate, actual and their difference."""
        import pandas as pd

        table = pd.DataFrame(list(self.labels), columns=list(self.dims))
        table["approximate"], table["actual"] = self.approximate, self.actual
        table["difference"] = self.approximate - self.actual
        return table

    def numbers(self) -> dict[str, float]:
        """Return the summary: cells, the two correlations, top_k, overlap, same_sign."""
        names = ("rank_correlation", "correlation", "top_k", "overlap", "same_sign")
        return {"cells": len(self.actual), **{name: getattr(self, name) for name in names}}


def agreement(
    approximate: PatchResult, actual: PatchResult, *, top_k: int = 10, normalised: bool = True
) -> Agreement:
    """Compare an approximation with activation patching, cell by cell.

    Cells are matched by their labels, so either result may hold layers, heads, positions or
    features that the other lacks. A cell's effect is the mean over the pairs that have it in both.

    Args:
        approximate: A result of `attribution_patching`.
        actual: A result of `activation_patching`.
        top_k: How many of the strongest cells to compare; all if there are fewer.
        normalised: Effects as shares of every pair's gap between clean and corrupted, else in the
            metric's own unit.

    Raises:
        ConfigError: The two are not of one component, mode, metric, axes and pairs, `top_k` is
            below 1, or they share no cell.
    """
    if top_k < 1:
        raise ConfigError(f"top_k: {top_k} cells cannot be compared; give 1 or more.")
    for what in ("component", "mode", "metric", "dims", "pairs"):
        ours, theirs = getattr(approximate, what), getattr(actual, what)
        if ours != theirs:
            seen = "other ones" if what == "pairs" else f"{ours!r} and {theirs!r}"
            raise ConfigError(
                f"{what}: the two results have {seen}; compare results of the same {what}."
            )
    shared = {
        dim: [label for label in actual.coords[dim] if label in set(approximate.coords[dim])]
        for dim in actual.dims
    }
    both = []
    for result in (approximate, actual):
        # Up where a patch moves the metric towards the clean run.
        effects = result.normalised() if normalised else result.change
        axes = [[result.coords[d].index(label) for label in shared[d]] for d in result.dims]
        both.append(effects[np.ix_(range(len(effects)), *axes)])
    there = ~(np.isnan(both[0]) | np.isnan(both[1]))
    filled = there.any(axis=0)
    if not filled.any():
        raise ConfigError(
            f"the two results of {actual.component} share no cell; patch the same layers, heads "
            "and positions in both."
        )
    counts = np.maximum(there.sum(axis=0), 1)
    ours, theirs = ((np.where(there, one, 0.0).sum(axis=0) / counts)[filled] for one in both)
    cells = np.argwhere(filled)
    labels = tuple(
        tuple(shared[dim][i] for dim, i in zip(actual.dims, cell, strict=True)) for cell in cells
    )
    count = min(top_k, len(labels))
    likely, strongest = (np.argsort(-np.abs(x), kind="stable")[:count] for x in (ours, theirs))
    rank, linear = _correlations(ours, theirs)
    return Agreement(
        method=approximate.method,
        dims=actual.dims,
        labels=labels,
        approximate=ours,
        actual=theirs,
        rank_correlation=rank,
        correlation=linear,
        top_k=count,
        overlap=len(np.intersect1d(strongest, likely)) / count,
        same_sign=float(np.mean(np.sign(ours[strongest]) == np.sign(theirs[strongest]))),
    )


def _correlations(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    if len(ours) < 3 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return float("nan"), float("nan")
    from scipy.stats import pearsonr, spearmanr

    found: tuple[Any, Any] = spearmanr(ours, theirs), pearsonr(ours, theirs)
    return float(found[0].statistic), float(found[1].statistic)
