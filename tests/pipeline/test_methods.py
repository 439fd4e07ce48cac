"""`saesteer run` with any method of the house."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.experiment import Compare
from saesteer.experiments.pairs_run import PairsRun
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import Steer, plan_run
from saesteer.utils.errors import ConfigError
from saesteer.utils.run_folder import RunFolder

LOOSE = {"max_firing": 1.0}
SETTINGS = {
    "attributed_sae": {"n_features": 6, "selection": LOOSE},
    "natural_gradient": {},
    "top_feature_output_score": {},
}


def with_method(settings: dict[str, Any], name: str, **rest: Any) -> dict[str, Any]:
    """The settings of a run with another method, whose objective takes seconds."""
    settings = {**settings, "method": {"name": name, "settings": SETTINGS.get(name, {})}}
    del settings["selection"]
    settings["evaluation"] = {**settings["evaluation"], "neutral_answers": 3}
    settings["objective"] = {"kl_target": 0.05, "fisher_samples": 2, "self_generated": 0.0}
    return {**settings, **rest}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_works_for_any_method(name, settings, capsys):
    from saesteer.cli.features import features_command
    from saesteer.cli.show import show_steer_plan
    from saesteer.report.terminal import console

    config = RunConfig(**with_method(settings, name))
    result = run_experiment(config)
    metrics = json.loads((result.folder.path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["vector"]["method"] == result.vector.method == name
    assert [row["feature"] for row in result.features] == [
        f.index for f in result.vector.sae_features
    ]
    assert [row["weight"] for row in result.features] == pytest.approx(
        [f.weight for f in result.vector.sae_features]
    )
    assert {record["strength"] for record in result.completions} >= {0.0}
    assert (result.folder.path / "report.html").stat().st_size > 10_000
    effect = metrics["vector"]["effect"]
    moved = (np.array(effect["up"]) - np.array(effect["down"])) / 2
    assert (effect["effect"], effect["low"], effect["high"]) == item_interval(moved)
    show_steer_plan(Steer(config))
    Steer(config).report(result).print(console(), result.folder.path)
    features_command(result.folder.path)
    told = capsys.readouterr().out
    assert ("made of no SAE features" in told) == (not result.vector.sae_features)
    assert run_experiment(config).metrics == result.metrics


def test_it_is_the_vector_that_a_comparison_fits_to_the_same_pairs(settings, tmp_path):
    config = RunConfig(**with_method(settings, "attributed_sae"))
    result, plan = run_experiment(config), plan_run(config)
    comparison = CompareConfig.model_validate(
        {
            "name": "same",
            "model": settings["model"],
            "sae": settings["sae"],
            "personas": [settings["pairs"]["source"]],
            "splits": {"train": 4, "validation": 2, "test": 2, "judge": 10},
            "methods": ["attributed_sae", "difference_in_means"],
            "seeds": [0],
            "objective": config.objective.model_dump(),
            "evaluation": {"neutral": settings["evaluation"]["neutral"], "neutral_answers": 3}
            | {"kl_targets": [0.05], "headline_kl_target": 0.05},
            "writing": {"questions": settings["completions"]["questions"], "n_questions": 0},
            "side_effects": {"n_prose": 0},
            "folder": settings["folder"],
        }
    )
    compared = Compare(comparison)
    run = PairsRun(compared, **plan.parts, name="same", seed=0, folder=RunFolder(tmp_path / "same"))
    vector = run.context.fit("attributed_sae", SETTINGS["attributed_sae"]).vector_
    torch.testing.assert_close(vector.raw, result.vector.raw, rtol=1e-6, atol=1e-6)
    assert [f.index for f in vector.sae_features] == [f.index for f in result.vector.sae_features]


def test_a_method_given_by_name_alone_changes_no_number_of_the_default(settings, whole):
    named = RunConfig(**{**settings, "method": "clustered_sae"})
    assert plan_run(named).folder.name == whole.folder.path.name


def test_a_method_or_setting_that_does_not_fit_is_said_before_anything_is_loaded(settings):
    def refused(words: str, **changes: Any) -> None:
        with pytest.raises((ConfigError, ValueError), match=words):
            plan_run(RunConfig(**{**settings, **changes}))

    refused("selection belongs to method clustered_sae", method="pca")
    refused("selection belongs to method", method="pca", selection={"n_features": 64})
    own = {"name": "clustered_sae", "settings": {"selection": LOOSE}}
    refused(r"method\.settings: those of clustered_sae stand beside it", method=own)
    del settings["selection"]
    refused("did you mean 'attributed_sae'", method="attributed_sea")
    refused("has no strength to match", method="system_prompt")
    pca = {"name": "pca", "settings": {"n": 3}}
    refused("method pca: n is not a known setting", method=pca)


def test_a_runs_config_file_gives_the_same_run(settings):
    config = RunConfig(**with_method(settings, "attributed_sae"))
    assert RunConfig(**config.model_dump(mode="json")).digest() == config.digest()
