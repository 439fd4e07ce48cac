"""The summary's figures, by hand from the stored pairs, and what was not reached."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

from saesteer.evaluation.statistics import hierarchical_bootstrap, paired_ratio, permutation_p
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.persona import NULLS
from saesteer.experiments.compare.summary import (
    Grid,
    area_rows,
    curve_rows,
    effect_rows,
    generation,
    null_rows,
    summary_rows,
)

NAMES = [f"p{i}" for i in range(6)]
KL_TARGETS = [0.1, 0.3]
METHODS = ["attributed_sae", "difference_in_means", "pca", "system_prompt"]
CONFIG = CompareConfig.model_validate(
    {
        "name": "stored",
        "personas": NAMES,
        "methods": METHODS,
        "seeds": [0, 1],
        "evaluation": {"kl_targets": KL_TARGETS, "headline_kl_target": 0.3},
        "writing": {"kl_targets": [0.3]},
        "random": {"directions": 3, "features": 2},
    }
)


def record(kl_target: float | None, moved: np.ndarray | None) -> dict[str, Any]:
    side = {"strength": 1.0, "kl": kl_target, "reached": moved is not None}
    effect = None
    if moved is not None:
        effect = {"effect": float(moved.mean()), "low": 0.0, "high": 1.0, "moved_share": 1.0}
        effect |= {"common_shift": 0.0, "up": moved.tolist(), "down": (-moved).tolist()}
    return {"kl_target": kl_target, "plus": side, "minus": side, "effect": effect}


class Stored:
    """Personas' records that were never measured: known effects, some of them missing."""

    def __init__(self, missing: set[tuple[str, str, int, float]] | None = None) -> None:
        self.rng = np.random.default_rng(0)
        self.missing = missing or set()
        self.moved: dict[tuple[str, str, int, float | None], np.ndarray] = {}
        self.nulls: dict[str, dict[str, list[float | None]]] = {}
        size = {"attributed_sae": 1.6, "difference_in_means": 1.0, "pca": 0.3, "system_prompt": 0.8}
        for place, name in enumerate(NAMES):
            for method in METHODS:
                for seed in CONFIG.seeds_of(method):
                    kl_targets = KL_TARGETS if seed == 0 else [0.3]
                    for kl_target in [None] if method == "system_prompt" else kl_targets:
                        mean = size[method] * (1 + 0.1 * place) * (kl_target or 0.3)
                        self.moved[name, method, seed, kl_target] = self.rng.normal(mean, 0.1, 7)
            self.nulls[name] = {
                "random_direction": [0.02, -0.05, 0.04],
                "random_features": [0.01, None if place == 0 else 0.6],
            }

    def runs(self, config: CompareConfig = CONFIG) -> list[Any]:
        return [self.run(name, config) for name in NAMES]

    def run(self, name: str, config: CompareConfig = CONFIG) -> Any:
        counts = dict(zip(NULLS, (config.random.directions, config.random.features), strict=True))

        def effects(method: str, seed: int) -> dict[str, Any]:
            kl_targets = [
                record(
                    kl_target, None if (name, method, seed, kl_target) in self.missing else moved
                )
                for (n, m, s, kl_target), moved in self.moved.items()
                if (n, m, s) == (name, method, seed)
            ]
            return {"kl_targets": kl_targets, "curve": None}

        def null(kind: str) -> list[dict[str, Any]]:
            drawn = self.nulls[name][kind][: counts[kind]]
            return [{"effect": None if effect is None else {"effect": effect}} for effect in drawn]

        seeds = {
            seed: SimpleNamespace(effects=lambda method, s=seed: effects(method.name, s))
            for seed in CONFIG.seeds
        }
        return SimpleNamespace(
            persona=SimpleNamespace(name=name),
            seeds=seeds,
            null=null,
        )


@pytest.fixture
def stored() -> Stored:
    return Stored()


def rows_of(stored: Stored) -> dict[tuple[str, float], dict[str, Any]]:
    results = Grid(CONFIG, stored.runs())
    return {(row["method"], row["kl_target"]): row for row in summary_rows(results)}


def test_the_effect_is_a_mean_of_personas_each_a_mean_of_its_seeds(stored):
    found = rows_of(stored)[("attributed_sae", 0.3)]
    by_hand = np.mean(
        [np.mean([stored.moved[n, "attributed_sae", s, 0.3].mean() for s in (0, 1)]) for n in NAMES]
    )
    assert found["effect"] == pytest.approx(by_hand)
    assert found["n_personas"] == 6
    values = [[stored.moved[n, "attributed_sae", s, 0.3] for s in (0, 1)] for n in NAMES]
    estimate = hierarchical_bootstrap(values)
    assert (found["low"], found["high"]) == (estimate.low, estimate.high)


def test_the_ratio_is_over_the_seeds_that_both_have(stored):
    rows = rows_of(stored)

    def values(method: str, seeds: tuple[int, ...]) -> list[Any]:
        return [[stored.moved[n, method, s, 0.3] for s in seeds] for n in NAMES]

    for method, seeds in (("attributed_sae", (0, 1)), ("pca", (0,))):
        wanted = paired_ratio(values(method, seeds), values("difference_in_means", seeds))
        row = rows[(method, 0.3)]
        assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == wanted[:3]
    own = rows[("attributed_sae", 0.3)]
    base = rows[("difference_in_means", 0.3)]
    assert own["ratio"] == pytest.approx(own["effect"] / base["effect"])
    assert own["ratio_low"] < own["ratio"] < own["ratio_high"]
    assert (base["ratio"], base["ratio_low"], base["ratio_high"], base["p"]) == (1, 1, 1, None)


def test_p_is_wilcoxons_over_personas_with_holms_correction_within_a_target(stored):
    rows = rows_of(stored)
    raw = {}
    for method in ("attributed_sae", "pca", "system_prompt"):
        seeds = (0, 1) if method == "attributed_sae" else (0,)
        kl_target = None if method == "system_prompt" else 0.3

        def means(name: str, of: str, at: float | None, seeds: tuple[int, ...] = seeds) -> Any:
            return np.mean([stored.moved[name, of, s, at].mean() for s in seeds])

        differences = [
            means(n, method, kl_target) - means(n, "difference_in_means", 0.3) for n in NAMES
        ]
        found: Any = wilcoxon(differences)
        raw[method] = float(found.pvalue)
        assert rows[(method, 0.3)]["p"] == pytest.approx(raw[method])
    largest = 0.0
    for place, (method, p) in enumerate(sorted(raw.items(), key=lambda entry: entry[1])):
        largest = max(largest, min(1.0, (3 - place) * p))
        assert rows[(method, 0.3)]["p_holm"] == pytest.approx(largest)


def test_beyond_null_counts_the_personas_past_every_random_draw(stored):
    rows = rows_of(stored)
    wanted = 0
    for name in NAMES:
        both = [e for kind in stored.nulls[name].values() for e in kind if e is not None]
        first = stored.moved[name, "attributed_sae", 0, 0.3].mean()
        wanted += int(first > max(abs(e) for e in both))
    assert rows[("attributed_sae", 0.3)]["beyond_null"] == wanted
    assert 0 < wanted < 6
    assert rows[("attributed_sae", 0.1)]["beyond_null"] is None


def test_random_draws_are_held_against_the_effect_under_their_own_seed(stored):
    # Under the first seed, which the draws are of, the effect is within them; the mean is beyond.
    for name in NAMES:
        stored.moved[name, "attributed_sae", 0, 0.3] = np.full(7, 0.5)
        stored.moved[name, "attributed_sae", 1, 0.3] = np.full(7, 0.9)
        stored.nulls[name] = {"random_direction": [0.02, -0.6, 0.04], "random_features": [0.1, 0.1]}
    assert rows_of(stored)[("attributed_sae", 0.3)]["beyond_null"] == 0
    for row in null_rows(Grid(CONFIG, stored.runs())):
        wanted = {"random_direction": 0.5, "random_features": 1 / 3}[row["kind"]]
        assert row["p"] == pytest.approx(wanted)


def test_a_null_that_is_switched_off_leaves_the_other_ones_verdict(stored):
    for off, kept in (("directions", "random_features"), ("features", "random_direction")):
        config = CONFIG.model_copy(update={"random": CONFIG.random.model_copy(update={off: 0})})
        rows = summary_rows(Grid(config, stored.runs(config)))
        at = ("attributed_sae", 0.3)
        found = next(r["beyond_null"] for r in rows if (r["method"], r["kl_target"]) == at)
        wanted = 0
        for name in NAMES:
            draws = [abs(e) for e in stored.nulls[name][kept] if e is not None]
            wanted += stored.moved[name, "attributed_sae", 0, 0.3].mean() > max(draws)
        assert found == wanted > 0


def test_the_null_leaves_out_what_missed_the_target(stored):
    rows = null_rows(Grid(CONFIG, stored.runs()))
    assert len(rows) == 12
    first = next(r for r in rows if (r["persona"], r["kind"]) == ("p0", "random_features"))
    effect = stored.moved["p0", "attributed_sae", 0, 0.3].mean()
    assert (first["effects"], first["largest"]) == ([0.01], 0.01)
    assert first["p"] == permutation_p(float(effect), [0.01]) == 0.5
    # No draw at all has no verdict.
    for name in NAMES:
        stored.nulls[name] = {"random_direction": [None] * 3, "random_features": [None] * 2}
    assert rows_of(stored)[("attributed_sae", 0.3)]["beyond_null"] is None


def test_a_target_that_was_not_reached_is_a_result_and_no_zero(stored):
    missed = Stored({("p1", "attributed_sae", 1, 0.3), ("p2", "pca", 0, 0.1)})
    found, before = rows_of(missed), rows_of(stored)
    row, others = found[("attributed_sae", 0.3)], [n for n in NAMES if n != "p1"]

    def mean(method: str) -> float:
        each = [[stored.moved[n, method, s, 0.3].mean() for s in (0, 1)] for n in others]
        return float(np.mean(each))

    assert (row["n_personas"], found[("pca", 0.1)]["n_personas"]) == (5, 5)
    assert row["effect"] == pytest.approx(mean("attributed_sae"))
    assert row["ratio"] == pytest.approx(mean("attributed_sae") / mean("difference_in_means"))
    assert found[("pca", 0.3)] == before[("pca", 0.3)]
    effects = effect_rows(Grid(CONFIG, missed.runs()))
    null = [row for row in effects if row["effect"] is None]
    assert {(r["persona"], r["method"], r["seed"], r["kl_target"]) for r in null} == missed.missing
    assert all(row["n_pairs"] is None and not row["plus"]["reached"] for row in null)
    areas = {r["method"]: r["n_personas"] for r in area_rows(Grid(CONFIG, missed.runs()))}
    assert areas == {"attributed_sae": 6, "difference_in_means": 6, "pca": 5}


def test_nothing_reached_anywhere_has_no_figure(stored):
    nowhere = {(n, "pca", 0, b) for n in NAMES for b in KL_TARGETS}
    missed = Stored(nowhere)
    row = rows_of(missed)[("pca", 0.3)]
    figures = ("effect", "low", "high", "ratio", "ratio_low", "ratio_high", "p", "p_holm")
    assert {row[name] for name in figures} == {None}
    assert (row["n_personas"], row["beyond_null"]) == (0, 0)
    assert curve_rows(Grid(CONFIG, missed.runs())) == []


def test_the_area_is_the_trapezoid_over_log_kl(stored):
    found = {row["method"]: row["area"] for row in area_rows(Grid(CONFIG, stored.runs()))}
    effects = [
        np.mean([stored.moved[n, "attributed_sae", 0, b].mean() for n in NAMES]) for b in KL_TARGETS
    ]
    assert found["attributed_sae"] == pytest.approx(np.mean(effects))
    assert "system_prompt" not in found


def written(method: str, readings: Mapping[tuple[int, int], float | None], composite: float | None):
    """A written record: readings of (question, sign)."""
    records = [
        {"question": question, "sign": sign, "sample": 0, "judge": judge, "text": "x"}
        for (question, sign), judge in readings.items()
    ]
    summary = {"signs": [], "right_direction": True, "composite": composite}
    return {"method": method, "kl_target": 0.3, "summary": summary, "records": records}


def test_an_empty_answer_is_missing_on_both_sides_of_the_ratio(stored):
    full = {(q, s): s * (1.0 + q) for q in range(4) for s in (1, -1)}
    half = {key: value / 2 for key, value in full.items()}
    runs = [stored.run(name) for name in NAMES[:2]]
    for run, own in zip(runs, ({**full, (3, 1): None}, full), strict=True):
        records = {
            "attributed_sae": written("attributed_sae", own, 0.0),
            "difference_in_means": written("difference_in_means", half, None),
        }
        run.to_write = lambda: [(method, 0.3) for method in METHODS[:2]]
        run.written = lambda method, kl_target, kept=records: kept[method]
    found = generation(Grid(CONFIG, runs))["generation_summary"]
    own, base = found
    assert own["judge_range"] == pytest.approx((2 * np.mean([1, 2, 3]) + 2 * 2.5) / 2)
    assert own["ratio"] == pytest.approx(2.0)
    assert (own["composite"], base["composite"]) == (0.0, None)
    assert own["right_direction"] == 2
