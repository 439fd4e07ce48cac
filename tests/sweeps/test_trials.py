"""What a trial is judged by, and comparisons as trials."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.experiments.registry import experiment_named
from saesteer.experiments.results import numbers_of
from saesteer.sweeps.results import sweep_record, write_results
from saesteer.sweeps.study import create_study
from saesteer.sweeps.sweep_file import read_sweep
from saesteer.sweeps.worker import Worker


def _fixtures() -> Any:
    place = Path(__file__).parents[1] / "compare" / "conftest.py"
    spec = importlib.util.spec_from_file_location("compare_fixtures", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fixtures = _fixtures()
compare_data, embeds, tiny_compare = fixtures.compare_data, fixtures.embeds, fixtures.tiny_compare
SMALL = {
    "writing": {"n_questions": 0},
    "random": {"directions": 0, "features": 0},
    "side_effects": {"choices": 0, "n_prose": 0, "pairs": 0},
    "seeds": [0],
}


def test_a_runs_numbers_are_those_of_its_metrics():
    side = {"strength": 0.2, "kl": 0.09}
    metrics = {
        "vector": {"effect": {"effect": 0.5, "low": 0.4}, "plus": side, "minus": {"kl": 0.11}},
        "fit": {"r2_mean": float("nan"), "features": 7},
        "null": None,
        "seconds": {"evaluation": 3.5},
    }
    config = SimpleNamespace(evaluation=SimpleNamespace(kl_target=0.1))
    steer: Any = type("Bare", (experiment_named("steer"),), {"config": config})
    headline = steer.headline(object.__new__(steer), metrics)
    found = numbers_of(headline, metrics, "seconds.evaluation")
    assert (found["effect"], found["effect_low"], found["features"]) == (0.5, 0.4, 7.0)
    assert found["kl"] == pytest.approx(0.1)
    assert (found["kl_target"], found["seconds.evaluation"]) == (0.1, 3.5)
    assert (found["r2"], found["null_largest"], found["strength_minus"]) == (None, None, None)
    assert steer.headline(object.__new__(steer), {})["effect"] is None


def test_a_comparisons_numbers_are_the_headlines_at_the_headline_kl_target():
    rows = [
        {"method": "pca", "kl_target": 0.1, "effect": 1.0},
        {"method": "pca", "kl_target": 0.3, "effect": 2.0, "low": 1.5, "ratio": 1.2},
        {"method": "other", "kl_target": 0.3, "effect": 9.0},
    ]
    metrics = {"summary": rows, "headline_method": "pca", "headline_kl_target": 0.3}
    compare: Any = object.__new__(experiment_named("compare"))
    found = compare.headline(metrics)
    assert (found["effect"], found["effect_low"], found["ratio"]) == (2.0, 1.5, 1.2)
    assert (found["kl_target"], found["kl"]) == (0.3, 0.3)
    assert compare.headline({})["effect"] is None


def test_personas_times_methods_is_a_sweep_of_comparisons(tiny_compare, compare_data, tmp_path):
    folder = tmp_path / "runs"
    base = tmp_path / "compare.yaml"
    base.write_text(json.dumps(tiny_compare(**SMALL) | {"folder": str(folder)}))
    methods = [
        {"headline": name, "methods": [name, "difference_in_means"]}
        for name in ("pca", "logistic_probe")
    ]
    file = tmp_path / "personas.yaml"
    fields = {
        "command": ["${env}", "saesteer", "compare", str(base), "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": "effect", "goal": "maximize"},
        "parameters": {
            "personas": {"values": [[compare_data["kindly"]], [compare_data["boldly"]]]},
            "together.method": {"values": methods},
        },
    }
    file.write_text(json.dumps(fields))
    sweep = read_sweep(file)
    study = create_study(sweep)
    assert study.enqueue(sweep.trials()) == 4
    assert Worker(study).work().done == 4, [row.error for row in study.rows()]
    rows = study.rows()
    compare: Any = object.__new__(experiment_named("compare"))
    for row in rows:
        stored = json.loads((Path(str(row.folder)) / "metrics.json").read_text(encoding="utf-8"))
        assert stored["headline_method"] == row.values["together.method"]["headline"]
        compare: Any = object.__new__(experiment_named("compare"))
        assert row.value == compare.headline(stored)["effect"]
    record = sweep_record(sweep, rows)
    labels = [trial["labels"]["together.method"] for trial in record["trials"]]
    assert labels == ["pca", "logistic_probe"] * 2
    write_results(sweep, record)
    config: Any = sweep.config(rows[0].values)
    assert config.headline == "pca"


def test_any_kind_of_experiment_can_be_swept(tiny_model_folder, tmp_path):
    base = tmp_path / "corrupt.yaml"
    settings = {
        "name": "tiny",
        "model": {"name": str(tiny_model_folder("llama")), "dtype": "float32"},
        "tasks": {"source": ["capitals"], "max_questions": 2},
        "programs": ["skip 0"],
        "completions": None,
        "folder": str(tmp_path / "runs"),
    }
    base.write_text(json.dumps(settings), encoding="utf-8")
    file = tmp_path / "sweep.yaml"
    fields = {
        "method": "grid",
        "metric": {"name": "loss", "goal": "minimize"},
        "command": ["saesteer", "corrupt", "run", str(base), "${args_no_hyphens}"],
        "parameters": {"tasks.shots": {"values": [0, 2]}},
    }
    file.write_text(json.dumps(fields), encoding="utf-8")
    sweep = read_sweep(file)
    study = create_study(sweep)
    study.enqueue(sweep.trials())
    assert Worker(study).work().done == 2, [row.error for row in study.rows()]
    rows = study.rows()
    losses = [
        json.loads((Path(str(row.folder)) / "metrics.json").read_text())["intact"]["loss"]
        for row in rows
    ]
    assert [row.value for row in rows] == losses
    assert sweep_record(sweep, rows)["best"] == losses.index(min(losses))
