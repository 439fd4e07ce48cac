"""Where a first-order approximation of patching agrees with patching itself, and where it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.patching.result import PatchResult
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


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
