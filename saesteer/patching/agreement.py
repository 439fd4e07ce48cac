"""Where a first-order approximation of patching agrees with patching itself, and where it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from saesteer.patching.result import PatchResult
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Agreement:
    """The cells that two results share, with their mean effects.

    Attributes:
        component: The component.
        method: How the approximation was found.
        dims: The axes of the cells.
        labels: Every cell's label along each axis.
        approximate: The approximation's mean effect of every cell.
        actual: Activation patching's mean effect of the same cell.
        rank_correlation: Spearman's rank correlation of the two; NaN with fewer than three cells
            or where one of them is the same in all. Every cell counts alike in it, so that in half
            precision it is mostly about cells whose effect is rounding.
        correlation: Pearson's correlation, which the strong cells make; NaN as above.
        top_k: How many of the strongest cells were compared.
        overlap: The share of the `top_k` cells of largest actual effect, either way, that are
            among the approximation's `top_k` too.
        same_sign: The share of those cells whose approximate effect has the right sign.
        normalised: Whether effects are shares of the gap between clean and corrupted, or in the
            metric's own unit.
    """

    component: str
    method: str
    dims: tuple[str, ...]
    labels: tuple[tuple[int | str, ...], ...]
    approximate: Float[np.ndarray, " cell"]
    actual: Float[np.ndarray, " cell"]
    rank_correlation: float
    correlation: float
    top_k: int
    overlap: float
    same_sign: float
    normalised: bool

    def frame(self) -> pd.DataFrame:
        """Return one row per cell: its labels, approximate, actual and their difference."""
        import pandas as pd

        table = pd.DataFrame(list(self.labels), columns=list(self.dims))
        table["approximate"], table["actual"] = self.approximate, self.actual
        table["difference"] = self.approximate - self.actual
        return table

    def worst(self, count: int = 10) -> pd.DataFrame:
        """Return the cells that disagree most, the largest difference first."""
        table = self.frame()
        order = np.argsort(-np.abs(self.approximate - self.actual), kind="stable")
        return table.iloc[order[:count]].reset_index(drop=True)

    def numbers(self) -> dict[str, float]:
        """Return the summary: cells, the two correlations, top_k, overlap, same_sign."""
        return {
            "cells": len(self.actual),
            "rank_correlation": self.rank_correlation,
            "correlation": self.correlation,
            "top_k": self.top_k,
            "overlap": self.overlap,
            "same_sign": self.same_sign,
        }


def agreement(
    approximate: PatchResult, actual: PatchResult, *, top_k: int = 10, normalised: bool = True
) -> Agreement:
    """Compare an approximation with activation patching, cell by cell.

    Cells are matched by their labels, so either result may hold layers, heads, positions or
    features that the other lacks. A cell's effect is the mean over the pairs that have it in both.

    Args:
        approximate: A result of `attribution_patching` or `integrated_gradients`.
        actual: A result of `activation_patching`.
        top_k: How many of the strongest cells to compare; all if there are fewer.
        normalised: Effects as shares of every pair's gap between clean and corrupted, else in the
            metric's own unit.

    Raises:
        ConfigError: The two are not of one component, mode, metric, axes and pairs, `top_k` is
            below 1, or they share no cell.
    """
    _check(approximate, actual, top_k)
    shared = {
        dim: [label for label in actual.coords[dim] if label in set(approximate.coords[dim])]
        for dim in actual.dims
    }
    both = [
        _effects(result, normalised)[_places(result, shared)] for result in (approximate, actual)
    ]
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
    strongest = _strongest(theirs, count)
    rank, linear = _correlations(ours, theirs)
    return Agreement(
        component=actual.component,
        method=approximate.method,
        dims=actual.dims,
        labels=labels,
        approximate=ours,
        actual=theirs,
        rank_correlation=rank,
        correlation=linear,
        top_k=count,
        overlap=len(np.intersect1d(strongest, _strongest(ours, count))) / count,
        same_sign=float(np.mean(np.sign(ours[strongest]) == np.sign(theirs[strongest]))),
        normalised=normalised,
    )


def _check(approximate: PatchResult, actual: PatchResult, top_k: int) -> None:
    if top_k < 1:
        raise ConfigError(f"top_k: {top_k} cells cannot be compared; give 1 or more.")
    for what in ("component", "mode", "metric", "dims", "pairs"):
        ours, theirs = getattr(approximate, what), getattr(actual, what)
        if ours != theirs:
            seen = "other ones" if what == "pairs" else f"{ours!r} and {theirs!r}"
            raise ConfigError(
                f"{what}: the two results have {seen}; compare results of the same {what}."
            )


def _effects(result: PatchResult, normalised: bool) -> Float[np.ndarray, "pair ..."]:
    """Return how far every patch moves the metric, up where it moves towards the clean run."""
    if normalised:
        # Noising counts from the clean run down: 0 unharmed, -1 as corrupted.
        return result.normalised()
    return result.values - result.origin


def _places(result: PatchResult, shared: dict[str, list[int | str]]) -> tuple[np.ndarray, ...]:
    pairs = np.arange(len(result.pairs))
    axes = [
        np.array([result.coords[dim].index(label) for label in shared[dim]], dtype=int)
        for dim in result.dims
    ]
    return np.ix_(pairs, *axes)


def _strongest(effects: Float[np.ndarray, " cell"], count: int) -> Int[np.ndarray, " top"]:
    return np.argsort(-np.abs(effects), kind="stable")[:count]


def _correlations(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    if len(ours) < 3 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return float("nan"), float("nan")
    from scipy.stats import pearsonr, spearmanr

    found: tuple[Any, Any] = spearmanr(ours, theirs), pearsonr(ours, theirs)
    return float(found[0].statistic), float(found[1].statistic)
