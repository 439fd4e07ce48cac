"""Steerability after steering-bench: how answers follow the strength, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.evaluation.statistics import hierarchical_bootstrap, item_interval, pair_slopes

if TYPE_CHECKING:
    import pandas as pd


def with_slopes(table: pd.DataFrame, multipliers: Sequence[float]) -> pd.DataFrame:
    """Add to samples' logit differences at each multiplier their least-squares `slope`.

    The slope is what Tan et al. 2024 (arXiv 2407.12404) call a sample's steerability, in nats for
    each unit of the multiplier; the columns of the logit differences are called by `column`.
    """
    found = table[[column(multiplier) for multiplier in multipliers]].to_numpy(dtype=float)
    return table.assign(slope=pair_slopes(multipliers, found.T))


def column(multiplier: float) -> str:
    """Return what tables call the logit difference at a multiplier."""
    return f"at {multiplier:g}"


def steerability(samples: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise the slopes of each dataset's samples, a data frame each with `sample` and `slope`.

    Where a sample was asked with several prompts its slopes are averaged; the share of
    anti-steerable samples, those whose slope is below 0, counts every prompt.

    Returns:
        slope, the macro-mean over datasets, with its 95% interval low and high: from a bootstrap
        over datasets and then samples, or of one dataset over its samples; anti_steerable,
        macro-mean too; n_datasets.
    """
    if not samples:
        return {**dict.fromkeys(("slope", "low", "high", "anti_steerable")), "n_datasets": 0}
    means = [own.groupby("sample")["slope"].mean().to_numpy() for own in samples.values()]
    shares = [float((own["slope"] < 0).mean()) for own in samples.values()]
    value, low, high, *_ = (
        item_interval(means[0]) if len(means) == 1 else hierarchical_bootstrap(means)
    )
    return {
        "slope": value,
        "low": low,
        "high": high,
        "anti_steerable": float(np.mean(shares)),
        "n_datasets": len(means),
    }
