"""The summary's figures, by hand from the stored pairs, and what was not reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

from saesteer.evaluation.statistics import compare_paired, hierarchical_bootstrap, permutation_p
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.summary import (
    Grid,
    area_rows,
    curve_rows,
    effect_rows,
    null_rows,
    summary_rows,
)
from saesteer.experiments.compare.summary_texts import generation

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
    effect = None if moved is None else {"effect": float(moved.mean()), "low": 0.0, "high": 1.0}
    values = {} if moved is None else {"moved_share": 1.0, "common_shift": 0.0}
    return {
        "kl_target": kl_target,
        "plus": side,
        "minus": side,
        **(effect or {"effect": None}),
        **values,
        "moved": None if moved is None else moved.tolist(),
    }


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

    def runs(self) -> list[Any]:
        return [self.run(name) for name in NAMES]

    def run(self, name: str) -> Any:
        def effects(method: str, seed: int) -> dict[str, Any]:
            kl_targets = [
                record(
                    kl_target, None if (name, method, seed, kl_target) in self.missing else moved
                )
                for (n, m, s, kl_target), moved in self.moved.items()
                if (n, m, s) == (name, method, seed)
            ]
            return {"kl_targets": kl_targets, "curve": None}

        def read_json(file: str) -> dict[str, Any]:
            kind, draw = file.removeprefix("null/").removesuffix(".json").rsplit("-", 1)
            return {"effect": self.nulls[name][kind][int(draw)]}

        seeds = {
            seed: SimpleNamespace(effects=lambda method, s=seed: effects(method.name, s))
            for seed in CONFIG.seeds
        }
        return SimpleNamespace(
            persona=SimpleNamespace(name=name),
            seeds=seeds,
            config=CONFIG,
            folder=SimpleNamespace(read_json=read_json),
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
        wanted = compare_paired(values(method, seeds), values("difference_in_means", seeds)).ratio
        row = rows[(method, 0.3)]
        assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (
            wanted.value,
            wanted.low,
            wanted.high,
        )
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


@pytest.mark.parametrize("off", ["directions", "features"])
def test_a_null_that_is_switched_off_leaves_the_other_ones_verdict(stored, off):
    config = CONFIG.model_copy(
        update={"random": CONFIG.random.model_copy(update={off: 0})}, deep=True
    )
    kept = "random_features" if off == "directions" else "random_direction"
    runs = [run for run in stored.runs() if setattr(run, "config", config) is None]
    rows = summary_rows(Grid(config, runs))
    found = next(
        r["beyond_null"] for r in rows if (r["method"], r["kl_target"]) == ("attributed_sae", 0.3)
    )
    wanted = 0
    for name in NAMES:
        draws = [abs(e) for e in stored.nulls[name][kept] if e is not None]
        wanted += stored.moved[name, "attributed_sae", 0, 0.3].mean() > max(draws)
    assert found == wanted > 0


def test_no_random_draw_at_all_has_no_verdict(stored):
    for name in NAMES:
        stored.nulls[name] = {"random_direction": [None] * 3, "random_features": [None] * 2}
    assert rows_of(stored)[("attributed_sae", 0.3)]["beyond_null"] is None


def test_the_null_is_held_against_the_headline_and_leaves_out_what_missed_the_target(stored):
    rows = null_rows(Grid(CONFIG, stored.runs()))
    assert len(rows) == 12
    first = next(r for r in rows if (r["persona"], r["kind"]) == ("p0", "random_features"))
    effect = stored.moved["p0", "attributed_sae", 0, 0.3].mean()
    assert first["effects"] == [0.01]
    assert first["largest"] == 0.01
    assert first["p"] == permutation_p(float(effect), [0.01]) == 0.5


def test_a_target_that_was_not_reached_is_a_result_and_no_zero(stored):
    missed = Stored({("p1", "attributed_sae", 1, 0.3), ("p2", "pca", 0, 0.1)})
    found = rows_of(missed)
    before = rows_of(stored)
    row = found[("attributed_sae", 0.3)]
    others = [n for n in NAMES if n != "p1"]
    by_hand = np.mean(
        [
            np.mean([stored.moved[n, "attributed_sae", s, 0.3].mean() for s in (0, 1)])
            for n in others
        ]
    )
    assert row["n_personas"] == 5
    assert row["effect"] == pytest.approx(by_hand)
    base = np.mean(
        [
            np.mean([stored.moved[n, "difference_in_means", s, 0.3].mean() for s in (0, 1)])
            for n in others
        ]
    )
    assert row["ratio"] == pytest.approx(by_hand / base)
    assert found[("pca", 0.1)]["n_personas"] == 5
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


def test_the_stored_pairs_give_the_summary_of_a_real_comparison(compared, settings):
    from saesteer.experiments.compare.plan import plan_compare

    def stored_rows(method: str) -> list[list[np.ndarray]]:
        return [
            [
                np.array(next(r["moved"] for r in json.loads(
                    (p.folder / f"seed-{seed}" / "effects" / f"{method}.json").read_text()
                )["kl_targets"] if r["kl_target"] == 0.05))
                for seed in (0, 1)
            ]
            for p in plan_compare(CompareConfig(**settings)).personas
        ]  # fmt: skip

    own, base = stored_rows("attributed_sae"), stored_rows("difference_in_means")
    row = next(
        r
        for r in compared.metrics["summary"]
        if (r["method"], r["kl_target"]) == ("attributed_sae", 0.05)
    )
    estimate, ratio = hierarchical_bootstrap(own), compare_paired(own, base).ratio
    assert (row["effect"], row["low"], row["high"]) == (estimate.value, estimate.low, estimate.high)
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (
        ratio.value,
        ratio.low,
        ratio.high,
    )
    assert row["effect"] == pytest.approx(np.mean([np.mean([s.mean() for s in p]) for p in own]))


def written(method: str, readings: Mapping[tuple[int, int], float | None], composite: float | None):
    """A written record: readings of (question, sign)."""
    records = [
        {"question": question, "sign": sign, "sample": 0, "judge": judge, "text": "x"}
        for (question, sign), judge in readings.items()
    ]
    summary = {"signs": [], "right_direction": True, "composite": composite}
    return {"method": method, "kl_target": 0.3, "summary": summary, "records": records}


def test_an_empty_answer_is_missing_on_both_sides_of_the_ratio(tmp_path, stored):
    full = {(q, s): s * (1.0 + q) for q in range(4) for s in (1, -1)}
    runs = []
    for name in NAMES[:2]:
        run = stored.run(name)
        folder = tmp_path / name
        (folder / "written").mkdir(parents=True)
        gap = {**full, (3, 1): None} if name == "p0" else full
        half = {key: None if v is None else v / 2 for key, v in full.items()}
        for method, readings, composite in (
            ("attributed_sae", gap, 0.0),
            ("difference_in_means", half, None),
        ):
            file = folder / "written" / f"{method}.json"
            file.write_text(json.dumps(written(method, readings, composite)))
        run.folder = SimpleNamespace(
            path=folder, has=lambda file: False, read_json=stored.run(name).folder.read_json
        )
        runs.append(run)
    found = generation(Grid(CONFIG, runs))["generation_summary"]
    own, base = found
    assert own["judge_range"] == pytest.approx((2 * np.mean([1, 2, 3]) + 2 * 2.5) / 2)
    assert own["ratio"] == pytest.approx(2.0)
    assert (own["composite"], base["composite"]) == (0.0, None)
    assert own["right_direction"] == 2
