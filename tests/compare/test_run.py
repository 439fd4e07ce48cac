"""A whole comparison on a tiny model: what it holds, and that it goes on after being cut off."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saesteer.evaluation.statistics import hierarchical_bootstrap, paired_ratio
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.experiment import TABLES
from saesteer.experiments.compare.persona import PersonaRun
from saesteer.experiments.compare.plan import plan_compare
from saesteer.experiments.pairs_run import PairsRun
from saesteer.experiments.registry import run_experiment
from saesteer.steering import SteeringVector
from saesteer.tracking import list_runs
from saesteer.utils.errors import OutputError
from saesteer.utils.files import draft_of, leave
from tests.report.made_up import made_up_metrics

WRITTEN = ("generation", "generation_summary", "judges")


def strict_json(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """What must be the same however often, and wherever, a comparison was started."""
    config = {key: value for key, value in metrics["config"].items() if key != "folder"}
    kept = {k: v for k, v in metrics.items() if k not in ("seconds", "vectors")}
    return {**kept, "config": config}


def again(settings: dict[str, Any]) -> dict[str, Any]:
    return run_experiment(CompareConfig(**settings)).metrics


def test_the_metrics_have_the_shape_that_the_report_reads(compared, embeds):
    # The report's own tests read metrics that are made up; real ones hold as much.
    metrics, made_up = compared.metrics, made_up_metrics(2, 2, 2)
    assert made_up.keys() - metrics.keys() <= {"llm_judge"}
    for name, rows in made_up.items():
        if isinstance(rows, list) and isinstance(next(iter(rows), None), dict):
            assert metrics[name] or (name in WRITTEN and not embeds), name
            assert all(row.keys() >= rows[0].keys() for row in metrics[name]), name
    (feature, *_) = made_up["features"]["agreeableness"]
    assert all(row.keys() == feature.keys() for row in metrics["features"]["kindly"])
    assert strict_json(compared.folder.path / "metrics.json") == metrics
    assert (compared.folder.path / "report.html").stat().st_size > 10_000
    assert [row["name"] for row in metrics["personas"]] == ["kindly", "boldly"]
    assert metrics["site"] == "blocks.1.hook_resid_post"
    assert {m["kind"] for m in metrics["methods"]} == {"sae", "dense", "prompt"}
    sizes = [[row[f"n_{part}"] for part in ("train", "validation", "test", "judge")]
             for row in metrics["personas"]]  # fmt: skip
    assert sizes == [[16, 6, 8, 12]] * 2


def test_features_clusters_and_choices_are_those_of_the_headline(compared, settings):
    metrics = compared.metrics
    for name in ("kindly", "boldly"):
        rows, tree = metrics["features"][name], metrics["linkage"][name]
        assert 0 < len(rows) <= 6
        vector = SteeringVector.load(metrics["vectors"][name])
        assert [f.index for f in vector.sae_features] == [row["feature"] for row in rows]
        assert {row["feature"] for row in rows} <= set(tree["labels"])
        assert len(tree["linkage"]) == len(tree["labels"]) - 1
        chosen = metrics["chosen"][name]
        assert set(chosen) == {"clustered_sae"}
        assert chosen["clustered_sae"]["selection"]["n_features"] in (6, 16)
    # A grid takes what moves the validation pairs most.
    for persona in plan_compare(CompareConfig(**settings)).personas:
        record = strict_json(persona.folder / "seed-0" / "chosen" / "clustered_sae.json")
        best = max(record["tried"], key=lambda tried: tried["effect"])
        assert record["settings"] == best["settings"]
        assert len({tried["effect"] for tried in record["tried"]}) == 2


def test_headline_and_baseline_are_repeated_and_the_others_measured_once(compared):
    seeds: dict[str, set[tuple[int, float]]] = {}
    for row in compared.metrics["effects"]:
        seeds.setdefault(row["method"], set()).add((row["seed"], row["kl_target"]))
    assert seeds["attributed_sae"] == {(0, 0.02), (0, 0.05), (1, 0.05)}
    assert seeds["difference_in_means"] == seeds["attributed_sae"]
    assert seeds["clustered_sae"] == {(0, 0.02), (0, 0.05)}
    assert seeds["system_prompt"] == {(0, None)}


def test_every_effect_was_measured_at_its_cost_and_lies_on_its_curve(compared):
    metrics = compared.metrics
    vectors = [row for row in metrics["effects"] if row["kl_target"] is not None]
    for row in vectors:
        for side, sign in (("plus", 1), ("minus", -1)):
            assert row[side]["reached"]
            assert row[side]["kl"] == pytest.approx(row["kl_target"], rel=0.031)
            assert row[side]["strength"] * sign > 0
        assert row["low"] <= row["effect"] <= row["high"]
        assert row["n_pairs"] == 8
    unsteered = {row["name"]: row["unsteered_margin"] for row in metrics["personas"]}
    for row in (r for r in vectors if r["seed"] == 0 and r["kl_target"] == 0.05):
        points = {
            p["multiple"]: p["margin"]
            for p in metrics["curves"]
            if (p["persona"], p["method"]) == (row["persona"], row["method"])
        }
        assert sorted(points) == [-1, 0, 1, 1.5]
        assert points[0] == pytest.approx(unsteered[row["persona"]], abs=1e-9)
        assert (points[1] - points[-1]) / 2 == pytest.approx(row["effect"], abs=1e-9)
        assert 0 <= row["anti_steerable"] <= 1


def test_the_stored_pairs_give_the_summary_of_a_real_comparison(compared, settings):
    def moved(folder: Path, method: str) -> np.ndarray:
        records = json.loads((folder / f"effects/{method}.json").read_text())["kl_targets"]
        effect = next(r["effect"] for r in records if r["kl_target"] == 0.05)
        return (np.array(effect["up"]) - np.array(effect["down"])) / 2

    own, base = (
        [
            [moved(persona.folder / f"seed-{seed}", method) for seed in (0, 1)]
            for persona in plan_compare(CompareConfig(**settings)).personas
        ]
        for method in ("attributed_sae", "difference_in_means")
    )
    at = ("attributed_sae", 0.05)
    rows = compared.metrics["summary"]
    row = next(r for r in rows if (r["method"], r["kl_target"]) == at)
    assert (row["effect"], row["low"], row["high"]) == hierarchical_bootstrap(own)[:3]
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == paired_ratio(own, base)[:3]
    assert row["effect"] == pytest.approx(np.mean([np.mean([s.mean() for s in p]) for p in own]))


def test_what_else_moved(compared):
    side = compared.metrics["side_effects"]
    pair = ("attributed_sae", "difference_in_means")
    assert [row["method"] for row in side["matrix"]] == list(pair)
    own = {
        (row["persona"], row["method"]): row["effect"]
        for row in compared.metrics["effects"]
        if row["seed"] == 0 and row["kl_target"] == 0.05
    }
    for row in side["matrix"]:
        diagonal = [row["values"][i][i] for i in range(2)]
        assert diagonal == [own[(name, row["method"])] for name in row["personas"]]
        assert all(math.isfinite(value) for line in row["values"] for value in line)
    assert len(side["prose"]) == 2 * 2 * 2
    assert {(r["method"], r["kind"]) for r in compared.metrics["choices_margins"]} == {
        (method, kind) for method in pair for kind in ("yes_no", "a_b")
    }


def test_what_is_written_is_judged_by_a_judge_of_its_own(compared, needs_embeddings):
    metrics = compared.metrics
    assert [(row["persona"], row["n_train"]) for row in metrics["judges"]] == [
        ("kindly", 12),
        ("boldly", 12),
    ]
    shown = metrics["completions"]["kindly"]
    assert {row["question"] for row in shown} == {"Why?", "Who are you?"}
    assert {row["sign"] for row in shown} == {-1, 0, 1}
    assert all((row["strength"] > 0) - (row["strength"] < 0) == row["sign"] for row in shown)


def test_the_tables_hold_the_numbers_of_the_metrics(compared):
    for name in filter(compared.metrics.get, TABLES):
        rows = pd.json_normalize(compared.metrics[name])
        table = pd.read_csv(compared.folder.path / "tables" / f"{name}.csv")
        assert list(table.columns) == list(rows.columns)
        for column in rows.select_dtypes("number"):
            assert table[column].tolist() == pytest.approx(rows[column].tolist(), nan_ok=True)


LOST = """
personas/*/seed-0/effects/difference_in_means.json personas/*/prose.json personas/*/shifts/*
personas/*/null/random_features-00.json personas/*/features/* personas/*/choices.json
personas/boldly-*/seed-*/vectors/* personas/boldly-*/seed-*/chosen/* compare-cache/*
personas/boldly-*/seed-*/effects/* personas/*/seed-0/unsteered.json
"""
# Not there without embeddings.
LOST_WRITING = "personas/*/judge.json personas/*/written/attributed_sae-0.05.json"


def test_what_is_lost_or_damaged_is_made_again_with_the_same_numbers(compared, copied):
    settings, folder = copied
    next(folder.rglob("metrics.json")).unlink()
    damaged = next(folder.glob("personas/kindly-*/seed-0/effects/attributed_sae.json"))
    damaged.write_text('{"kl_targets": [')
    with pytest.raises(OutputError, match=r"attributed_sae\.json is damaged .*; delete it"):
        again(settings)
    damaged.unlink()
    # Files of a persona that is marked as finished, and of one that is not.
    for file in folder.glob("personas/boldly-*/done.json"):
        file.unlink()
    for pattern in LOST.split():
        assert list(folder.glob(pattern)), pattern
    for pattern in f"{LOST} {LOST_WRITING}".split():
        for file in folder.glob(pattern):
            file.unlink()
    assert numbers(again(settings)) == numbers(compared.metrics)


def test_a_comparison_killed_in_the_middle_goes_on_with_the_same_numbers(
    compared, copied, monkeypatch
):
    settings, folder = copied
    for file in (*folder.rglob("done.json"), *folder.rglob("metrics.json")):
        file.unlink()
    (boldly,) = folder.glob("personas/boldly-*")
    shutil.rmtree(boldly)

    class Killed(BaseException):
        pass

    def killed(*args: Any) -> Any:
        raise Killed

    # First among the methods, then among the null's draws, then before side effects.
    for place in (PairsRun, "_drawn"), (PersonaRun, "choices"):
        with monkeypatch.context() as patch:
            patch.setattr(*place, killed)
            with pytest.raises(Killed):
                again(settings)
        assert not (boldly / "done.json").exists()
    # What a killed process leaves behind of the file it was writing.
    draft = draft_of(boldly / "prose.json")
    draft.write_text("[{")
    leave(draft)
    assert numbers(again(settings)) == numbers(compared.metrics)
    assert not list(boldly.rglob(".*"))


def test_a_comparison_called_from_python_is_recorded_with_its_personas(compared, settings):
    runs = list_runs(Path(settings["folder"]))
    (whole,) = [run for run in runs if run.kind == "compare"]
    assert (whole.folder.resolve(), whole.status) == (compared.folder.path.resolve(), "finished")
    record = json.loads((whole.folder / "run.json").read_text(encoding="utf-8"))
    assert {"personas", "report"} <= set(record["seconds"]) and record["metrics"]["effects"]
    parts = [run for run in runs if run.kind == "persona"]
    assert [run.parent for run in parts] == [whole.id] * len(settings["personas"])
