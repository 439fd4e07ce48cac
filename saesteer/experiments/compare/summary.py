"""From the personas' records to `metrics.json`: every number of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saesteer.evaluation.statistics import (
    area_values,
    compare_paired,
    hierarchical_bootstrap,
    holm,
    permutation_p,
    wilcoxon_over_personas,
)
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.persona_run import PersonaRun
from saesteer.methods.registry import method_entry

Row = dict[str, Any]
Moved = list[np.ndarray] | None
NULLS = ("random_direction", "random_features")


class Grid:
    """The records of all personas, read once.

    Args:
        config: The comparison's settings.
        runs: Its personas, measured.
    """

    def __init__(self, config: CompareConfig, runs: Sequence[PersonaRun]) -> None:
        self.config = config
        self.runs = runs
        self.headline = config.evaluation.headline_kl_target
        self.effects = {
            (run.persona.name, method.name, seed): run.seeds[seed].effects(method)
            for run in runs
            for seed in config.seeds
            for method in config.methods_under(seed)
        }
        self.nulls = {
            (run.persona.name, kind): _null_effects(run, kind) for run in runs for kind in NULLS
        }

    @property
    def names(self) -> list[str]:
        """The personas' names."""
        return [run.persona.name for run in self.runs]

    def moved(self, method: str, kl_target: float, seeds: Sequence[int]) -> list[Moved]:
        """Return each persona's moved margins, a row for each seed.

        A persona where the KL target was missed under any of the seeds counts as not measured.
        """
        return [self._moved(name, method, kl_target, seeds) for name in self.names]

    def _moved(self, name: str, method: str, kl_target: float, seeds: Sequence[int]) -> Moved:
        rows = []
        for seed in seeds:
            found = self.effects[(name, method, seed)]["kl_targets"]
            record = next((r for r in found if r["kl_target"] in (kl_target, None)), None)
            if record is None or record["moved"] is None:
                return None
            rows.append(np.array(record["moved"]))
        return rows

    def first_effects(self, method: str) -> list[float | None]:
        """Return each persona's effect at the headline KL target under the first seed.

        Random draws are measured under that seed alone. A mean over seeds spreads less than they
        do, so it is not what they are held against.
        """
        return [_mean(v) for v in self.moved(method, self.headline, self.config.seeds[:1])]

    def draws(self, persona: str) -> list[float]:
        """Return the effects of a persona's random draws of either kind that met the KL target."""
        return [effect for kind in NULLS for effect in self.nulls[(persona, kind)]]

    def seeds_at(self, method: str, kl_target: float) -> list[int]:
        """Return the seeds under which a method was measured at a KL target."""
        seeds = self.config.seeds_of(method)
        return seeds if kl_target == self.headline else seeds[:1]


def summary_rows(results: Grid) -> list[Row]:
    """Return every method at every KL target: macro-mean, ratio to the baseline, test, null."""
    config = results.config
    rows = []
    for kl_target in config.evaluation.kl_targets:
        at_target = []
        for method in config.methods:
            seeds = [
                seed
                for seed in results.seeds_at(method.name, kl_target)
                if seed in results.seeds_at(config.baseline, kl_target)
            ]
            own = results.moved(method.name, kl_target, results.seeds_at(method.name, kl_target))
            paired = results.moved(method.name, kl_target, seeds)
            against = results.moved(config.baseline, kl_target, seeds)
            at_target.append(_summary_row(results, method.name, kl_target, own, paired, against))
        corrected = holm({row["method"]: row["p"] for row in at_target})
        rows += [{**row, "p_holm": corrected[row["method"]]} for row in at_target]
    return rows


def _summary_row(
    results: Grid,
    method: str,
    kl_target: float,
    own: list[Moved],
    paired: list[Moved],
    against: list[Moved],
) -> Row:
    estimate = hierarchical_bootstrap(own)
    row: Row = {
        "method": method,
        "kl_target": kl_target,
        "n_personas": estimate.n_personas,
        "effect": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "ratio": None,
        "ratio_low": None,
        "ratio_high": None,
        "p": None,
        "beyond_null": None,
    }
    if method == results.config.baseline:
        row |= {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    else:
        ratio = compare_paired(paired, against).ratio
        means = [[_mean(values) for values in side] for side in (paired, against)]
        row |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        row["p"] = wilcoxon_over_personas(*means).p
    if kl_target == results.headline and any(results.nulls.values()):
        row["beyond_null"] = sum(
            first > max(map(abs, results.draws(name)), default=np.inf)
            for name, first, values in zip(
                results.names, results.first_effects(method), own, strict=True
            )
            if first is not None and values is not None
        )
    return row


def _mean(values: Moved) -> float | None:
    return None if values is None else float(np.mean([row.mean() for row in values]))


def _null_effects(run: PersonaRun, kind: str) -> list[float]:
    settings = run.config.random
    count = settings.directions if kind == NULLS[0] else settings.features
    found = [run.folder.read_json(f"null/{kind}-{draw:02d}.json") for draw in range(count)]
    return [record["effect"] for record in found if record["effect"] is not None]


def effect_rows(results: Grid) -> list[Row]:
    """Return every measured effect, without the pairs' own values."""
    rows = []
    for (persona, method, seed), found in results.effects.items():
        curve = found["curve"] or {}
        for record in found["kl_targets"]:
            row = dict.fromkeys(("effect", "low", "high", "moved_share", "common_shift"))
            row |= {
                key: value for key, value in record.items() if key not in ("moved", "up", "down")
            }
            headline = record["kl_target"] == results.headline
            row |= {
                "persona": persona,
                "method": method,
                "seed": seed,
                "n_pairs": None if record["moved"] is None else len(record["moved"]),
                "slope": curve.get("slope") if headline else None,
                "anti_steerable": curve.get("anti_steerable") if headline else None,
            }
            rows.append(row)
    return rows


def curve_rows(results: Grid) -> list[Row]:
    """Return the mean margin at multiples of the matched strengths."""
    return [
        {"persona": persona, "method": method, "seed": seed, **point}
        for (persona, method, seed), found in results.effects.items()
        if found["curve"]
        for point in found["curve"]["points"]
    ]


def area_rows(results: Grid) -> list[Row]:
    """Return each method's area under E against log KL, where every KL target was reached."""
    kl_targets = results.config.evaluation.kl_targets
    if len(kl_targets) < 2:
        return []
    rows = []
    for method in results.config.methods:
        if method_entry(method.name).kind == "prompt":
            continue
        first = results.config.seeds[:1]
        found = area_values({b: results.moved(method.name, b, first) for b in kl_targets})
        estimate = hierarchical_bootstrap(found)
        rows.append(
            {
                "method": method.name,
                "area": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "n_personas": estimate.n_personas,
            }
        )
    return rows


def null_rows(results: Grid) -> list[Row]:
    """Return the null of each persona, with the headline method's permutation p against it."""
    rows = []
    own = results.first_effects(results.config.headline)
    for name, first in zip(results.names, own, strict=True):
        for kind in NULLS:
            effects = results.nulls[(name, kind)]
            rows.append(
                {
                    "persona": name,
                    "kind": kind,
                    "effects": effects,
                    "largest": max(map(abs, effects), default=None),
                    "p": None if first is None or not effects else permutation_p(first, effects),
                }
            )
    return rows
