"""The numbers that a list of runs, a sweep and the agent judge an experiment by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# What `metric.name` may be, besides dotted paths into metrics.json.
METRICS = {
    "run": {
        "effect": "vector.effect.effect",
        "effect_low": "vector.effect.low",
        "effect_high": "vector.effect.high",
        "moved_share": "vector.effect.moved_share",
        "common_shift": "vector.effect.common_shift",
        "strength_plus": "vector.plus.strength",
        "strength_minus": "vector.minus.strength",
        "effect_difference_in_means": "difference_in_means.effect.effect",
        "null_largest": "null.largest",
        "p_value": "null.p_value",
        "r2": "fit.r2_mean",
        "cosine": "fit.cosine_to_mean_delta",
        "features": "fit.features",
        "unsteered_margin": "unsteered_margin",
    },
    "compare": {"effect": "", "effect_low": "", "effect_high": "", "ratio": "", "beyond_null": ""},
}
# In every trial's numbers: the KL target that was asked for and the divergence that was measured.
COSTS = ("kl_target", "kl")


def run_numbers(metrics: Mapping[str, Any], kl_target: float) -> dict[str, float | None]:
    """Return the numbers of a run's `metrics.json`, flat.

    Args:
        metrics: What the file holds.
        kl_target: The KL target asked for, nats per token.
    """
    found = {name: _at(metrics, path) for name, path in METRICS["run"].items()}
    sides = [_at(metrics, f"vector.{side}.kl") for side in ("plus", "minus")]
    known = [side for side in sides if side is not None]
    return {**found, "kl_target": kl_target, "kl": sum(known) / len(known) if known else None}


def compare_numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of the headline method at the headline KL target, flat."""
    kl_target, method = metrics.get("headline_kl_target"), metrics.get("headline_method")
    rows = [r for r in metrics.get("summary") or () if r.get("method") == method]
    row = next((r for r in rows if r.get("kl_target") == kl_target), {})
    names = {"effect": "effect", "effect_low": "low", "effect_high": "high"}
    names |= {"ratio": "ratio", "beyond_null": "beyond_null"}
    found = {name: _number(row.get(field)) for name, field in names.items()}
    # Every vector is given the KL target itself, to within 3%.
    return {
        **found,
        "kl_target": _number(kl_target),
        "kl": _number(kl_target) if found["effect"] else None,
    }


def numbers_of(
    headline: Mapping[str, Any], metrics: Mapping[str, Any], metric: str | None
) -> dict[str, float | None]:
    """Return a headline's single numbers, with the metric that is wanted besides.

    Args:
        headline: What an experiment says of itself.
        metrics: What its `metrics.json` holds, or what is known of it so far.
        metric: One of the headline's names, or a dotted path into the metrics.
    """
    found = {
        name: None if value is None else _number(value)
        for name, value in headline.items()
        if value is None or _number(value) is not None
    }
    return found if metric is None or metric in found else {**found, metric: _at(metrics, metric)}


def _at(metrics: Mapping[str, Any], path: str) -> float | None:
    place: Any = metrics
    for part in path.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return _number(place)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
