"""The summary's figures, by hand from the stored pairs, and what was not reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

from saesteer.evaluation.statistics import hierarchical_bootstrap, paired_ratio, permutation_p
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.grid import Grid
from saesteer.experiments.compare.persona import NULLS
from saesteer.experiments.compare.summary import (
    area_rows,
    curve_rows,
    effect_rows,
    null_rows,
    summary_rows,
)
from saesteer.experiments.compare.texts import generation, judge_rows, masked_rows, prompt_rows

NAMES = [f"p{i}" for i in range(6)]
KL_TARGETS = [0.1, 0.3]
SIZES = {"attributed_sae": 1.6, "difference_in_means": 1.0, "pca": 0.3, "system_prompt": 0.8}
CONFIG = CompareConfig.model_validate(
    {
        "name": "stored",
        "personas": NAMES,
        "methods": list(SIZES),
        "seeds": [0, 1],
        "evaluation": {"kl_targets": KL_TARGETS, "headline_kl_target": 0.3},
        "writing": {"kl_targets": [0.3]},
        "random": {"directions": 3, "features": 2},
    }
)
AT = ("attributed_sae", 0.3)


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
        rng = np.random.default_rng(0)
        self.missing = missing or set()
        self.moved: dict[tuple[str, str, int, float | None], np.ndarray] = {}
        self.nulls: dict[str, dict[str, list[float]]] = {}
        for place, name in enumerate(NAMES):
            for method, size in SIZES.items():
                for seed in CONFIG.seeds_of(method):
                    kl_targets = KL_TARGETS if seed == 0 else [0.3]
                    for kl_target in [None] if method == "system_prompt" else kl_targets:
                        mean = size * (1 + 0.1 * place) * (kl_target or 0.3)
                        self.moved[name, method, seed, kl_target] = rng.normal(mean, 0.1, 7)
            self.nulls[name] = {
                "random_direction": [0.02, -0.05, 0.04],
                "random_features": [0.01] if place == 0 else [0.01, 0.6],
            }

    def grid(self, config: CompareConfig = CONFIG) -> Grid:
        effects: dict[tuple[str, str, int], dict[str, Any]] = {}
        for key, moved in self.moved.items():
            found = effects.setdefault(key[:3], {"kl_targets": [], "curve": None})
            found["kl_targets"].append(record(key[3], None if key in self.missing else moved))
        counts = dict(zip(NULLS, (config.random.directions, config.random.features), strict=True))
        nulls = {
            (name, kind): drawn[: counts[kind]]
            for name, kinds in self.nulls.items()
            for kind, drawn in kinds.items()
        }
        return Grid(config, NAMES, effects, nulls, {})

    def rows(self, config: CompareConfig = CONFIG) -> dict[tuple[str, float], dict[str, Any]]:
        rows = summary_rows(self.grid(config))
        return {(row["method"], row["kl_target"]): row for row in rows}

    def values(self, method: str, seeds: tuple[int, ...], at: float | None = 0.3) -> list[Any]:
        return [[self.moved[name, method, seed, at] for seed in seeds] for name in NAMES]


@pytest.fixture
def stored() -> Stored:
    return Stored()


def test_the_effect_is_a_mean_of_personas_each_a_mean_of_its_seeds(stored):
    found, values = stored.rows()[AT], stored.values("attributed_sae", (0, 1))
    by_hand = np.mean([np.mean([seed.mean() for seed in persona]) for persona in values])
    assert found["effect"] == pytest.approx(by_hand)
    assert found["n_personas"] == 6
    assert (found["low"], found["high"]) == hierarchical_bootstrap(values)[1:3]


def test_the_ratio_is_over_the_seeds_that_both_have(stored):
    rows = stored.rows()
    for method, seeds in (("attributed_sae", (0, 1)), ("pca", (0,))):
        own, base = (stored.values(name, seeds) for name in (method, "difference_in_means"))
        row = rows[(method, 0.3)]
        assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == paired_ratio(own, base)[:3]
    own, base = rows[AT], rows[("difference_in_means", 0.3)]
    assert own["ratio"] == pytest.approx(own["effect"] / base["effect"])
    assert own["ratio_low"] < own["ratio"] < own["ratio_high"]
    assert (base["ratio"], base["ratio_low"], base["ratio_high"], base["p"]) == (1, 1, 1, None)


def test_p_is_wilcoxons_over_personas_with_holms_correction_within_a_target(stored):
    rows, raw = stored.rows(), {}
    for method, seeds, at in (
        ("attributed_sae", (0, 1), 0.3),
        ("pca", (0,), 0.3),
        ("system_prompt", (0,), None),
    ):
        own, base = (
            np.array([np.mean([seed.mean() for seed in persona]) for persona in values])
            for values in (
                stored.values(method, seeds, at),
                stored.values("difference_in_means", seeds),
            )
        )
        found: Any = wilcoxon(own - base)
        raw[method] = float(found.pvalue)
        assert rows[(method, 0.3)]["p"] == pytest.approx(raw[method])
    largest = 0.0
    for place, (method, p) in enumerate(sorted(raw.items(), key=lambda entry: entry[1])):
        largest = max(largest, min(1.0, (3 - place) * p))
        assert rows[(method, 0.3)]["p_holm"] == pytest.approx(largest)


@pytest.mark.parametrize("off", [None, "directions", "features"])
def test_beyond_null_counts_the_personas_past_every_random_draw(stored, off):
    config, kinds = CONFIG, set(NULLS)
    if off is not None:
        # A null that is switched off leaves the other one's verdict.
        config = CONFIG.model_copy(update={"random": CONFIG.random.model_copy(update={off: 0})})
        kinds -= {"random_direction" if off == "directions" else "random_features"}
    rows, wanted = stored.rows(config), 0
    for name in NAMES:
        drawn = [abs(e) for kind in kinds for e in stored.nulls[name][kind]]
        wanted += int(stored.moved[name, "attributed_sae", 0, 0.3].mean() > max(drawn))
    assert rows[AT]["beyond_null"] == wanted > 0
    assert rows[("attributed_sae", 0.1)]["beyond_null"] is None


def test_random_draws_are_held_against_the_effect_under_their_own_seed(stored):
    # Under the first seed, which the draws are of, the effect is within them; the mean is beyond.
    for name in NAMES:
        stored.moved[name, "attributed_sae", 0, 0.3] = np.full(7, 0.5)
        stored.moved[name, "attributed_sae", 1, 0.3] = np.full(7, 0.9)
        stored.nulls[name] = {"random_direction": [0.02, -0.6, 0.04], "random_features": [0.1, 0.1]}
    assert stored.rows()[AT]["beyond_null"] == 0
    for row in null_rows(stored.grid()):
        wanted = {"random_direction": 0.5, "random_features": 1 / 3}[row["kind"]]
        assert row["p"] == pytest.approx(wanted)


def test_a_null_of_few_draws_or_none_has_its_own_verdict(stored):
    rows = null_rows(stored.grid())
    assert len(rows) == 12
    first = next(r for r in rows if (r["persona"], r["kind"]) == ("p0", "random_features"))
    effect = stored.moved["p0", "attributed_sae", 0, 0.3].mean()
    assert (first["effects"], first["largest"]) == ([0.01], 0.01)
    assert first["p"] == permutation_p(float(effect), [0.01]) == 0.5
    # No draw at all has no verdict.
    for name in NAMES:
        stored.nulls[name] = {kind: [] for kind in NULLS}
    assert stored.rows()[AT]["beyond_null"] is None


def test_a_target_that_was_not_reached_is_a_result_and_no_zero(stored):
    missed = Stored({("p1", "attributed_sae", 1, 0.3), ("p2", "pca", 0, 0.1)})
    found, row = missed.rows(), missed.rows()[AT]

    def mean(method: str) -> float:
        values = stored.values(method, (0, 1))
        del values[1]
        return float(np.mean([[seed.mean() for seed in persona] for persona in values]))

    assert (row["n_personas"], found[("pca", 0.1)]["n_personas"]) == (5, 5)
    assert row["effect"] == pytest.approx(mean("attributed_sae"))
    assert row["ratio"] == pytest.approx(mean("attributed_sae") / mean("difference_in_means"))
    assert found[("pca", 0.3)] == stored.rows()[("pca", 0.3)]
    null = [row for row in effect_rows(missed.grid()) if row["effect"] is None]
    assert {(r["persona"], r["method"], r["seed"], r["kl_target"]) for r in null} == missed.missing
    assert all(row["n_pairs"] is None and not row["plus"]["reached"] for row in null)
    areas = {r["method"]: r["n_personas"] for r in area_rows(missed.grid())}
    assert areas == {"attributed_sae": 6, "difference_in_means": 6, "pca": 5}
    # Nothing reached anywhere has no figure.
    missed = Stored({(name, "pca", 0, at) for name in NAMES for at in KL_TARGETS})
    row = missed.rows()[("pca", 0.3)]
    figures = ("effect", "low", "high", "ratio", "ratio_low", "ratio_high", "p", "p_holm")
    assert {row[name] for name in figures} == {None}
    assert (row["n_personas"], row["beyond_null"]) == (0, 0)
    assert curve_rows(missed.grid()) == []


def test_the_area_is_the_trapezoid_over_log_kl(stored):
    found = {row["method"]: row["area"] for row in area_rows(stored.grid())}
    effects = [np.mean(stored.values("attributed_sae", (0,), at)) for at in KL_TARGETS]
    assert found["attributed_sae"] == pytest.approx(np.mean(effects))
    assert "system_prompt" not in found


def written(method: str, readings: Mapping[tuple[int, int], float | None], composite: float | None):
    """A written record: readings of (question, sign)."""
    records = [
        {"question": question, "sign": sign, "sample": 0, "judge": judge, "text": "x"}
        | {"readings": {"one": judge}}
        for (question, sign), judge in readings.items()
    ]
    summary = {"signs": [], "right_direction": True, "composite": composite}
    return {"method": method, "kl_target": 0.3, "summary": summary, "records": records}


def test_an_empty_answer_is_missing_on_both_sides_of_the_ratio():
    full = {(q, s): s * (1.0 + q) for q in range(4) for s in (1, -1)}
    half = {key: value / 2 for key, value in full.items()}
    kept = {
        name: [
            written("attributed_sae", own, 0.0),
            written("difference_in_means", half, None),
        ]
        for name, own in zip(NAMES, ({**full, (3, 1): None}, full), strict=False)
    }
    grid = Grid(CONFIG, NAMES[:2], {}, {}, kept)
    own, base = generation(grid)["generation_summary"]
    assert own["judge_range"] == pytest.approx((2 * np.mean([1, 2, 3]) + 2 * 2.5) / 2)
    assert own["ratio"] == pytest.approx(2.0)
    assert (own["composite"], base["composite"]) == (0.0, None)
    assert own["right_direction"] == 2
    alone, _ = judge_rows(grid)
    assert (alone["judge"], alone["judge_range"]) == ("one", own["judge_range"])
    assert alone["ratio"] == pytest.approx(2.0)


def test_ranges_masked_and_at_the_prompts_kl_are_held_against_their_own():
    full = {(q, s): s * (1.0 + q) for q in range(4) for s in (1, -1)}
    names, pair = NAMES[:2], ("attributed_sae", "difference_in_means")

    def times(factor: float, method: str, kl_target: float | None = None) -> dict[str, Any]:
        own = {key: factor * value for key, value in full.items()}
        return {**written(method, own, 0.5), "kl_target": kl_target}

    kept, masked, at_prompt = (
        {name: [times(f, m, kl) for f, m in zip(factors, pair, strict=True)] for name in names}
        for factors, kl in (((2, 1), 0.3), ((1.5, 1), 0.3), ((3, 2), None))
    )
    for name in names:
        kept[name].append(times(4, "system_prompt"))
    cost = {"kl_targets": [{"plus": {"kl": 0.8}, "minus": {"kl": 0.6}}]}
    effects = {(name, "system_prompt", 0): cost for name in names}
    grid = Grid(CONFIG, names, effects, {}, kept, masked, at_prompt)
    for judge in (None, "one"):
        own, _ = (row for row in masked_rows(grid) if row["judge"] == judge)
        assert (own["ratio"], own["masked_ratio"]) == pytest.approx((2.0, 1.5))
        assert own["masked_judge_range"] == pytest.approx(1.5 * 5)
        rows = [row for row in prompt_rows(grid) if row["judge"] == judge]
        found = {row["method"]: row["ratio"] for row in rows}
        assert found == pytest.approx({"system_prompt": 1.0, pair[0]: 0.75, pair[1]: 0.5})
        assert (rows[1]["kl_plus"], rows[1]["kl_minus"]) == pytest.approx((0.8, 0.6))
