"""From pairs to a steered model on tiny models, with the evidence in the folder."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from saesteer.experiments import steering
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import Steer
from saesteer.methods.features import encode_pairs
from saesteer.report.terminal import console
from saesteer.saes import load_sae
from saesteer.steering import SteeringVector

from .reading import numbers, strict_json


def test_a_finished_run_holds_all_that_the_readme_names(whole):
    folder = whole.folder.path
    for name in ("config", "split", "run", "fit", "metrics", "completions", "features"):
        assert strict_json(folder / f"{name}.json")
    assert strict_json(folder / "metrics.json") == whole.metrics
    assert (folder / "report.html").stat().st_size > 1000
    table = pd.read_parquet(folder / "features.parquet")
    assert list(table["feature"]) == [row["feature"] for row in whole.features]
    record = strict_json(folder / "run.json")
    assert record["model_fingerprint"] == whole.vector.model_fingerprint
    assert record["versions"]["torch"] == torch.__version__
    assert SteeringVector.load(folder).norm == whole.vector.norm
    assert not list(folder.rglob(".*"))


def test_a_model_without_chat_template_or_bos_and_the_last_token_alone(tiny_settings):
    settings = tiny_settings("qwen3", chat=False)
    settings["reading"] = {"positions": "last"}
    result = run_experiment(RunConfig(**settings))
    assert result.vector.read_positions == "statement tokens, last"
    assert math.isfinite(result.metrics["unsteered_margin"])
    assert result.completions


def test_the_same_settings_give_the_same_numbers_in_another_folder(whole, settings):
    again = run_experiment(RunConfig(**settings))
    assert again.folder.path.parent != whole.folder.path.parent
    # The name says what the numbers depend on, which is neither the place nor the threads.
    assert again.folder.path.name == whole.folder.path.name
    assert numbers(again.folder.path) == numbers(whole.folder.path)


@pytest.mark.parametrize("kl", [math.inf, 0.0])
def test_a_target_that_is_never_reached_is_a_result_in_plain_json(
    kl, settings, monkeypatch, capsys
):
    monkeypatch.setattr(steering.DivergenceMeter, "__call__", lambda *args: kl)
    config = RunConfig(**settings)
    result = run_experiment(config)
    metrics = strict_json(result.folder.path / "metrics.json")
    assert metrics["vector"]["effect"] is None
    assert metrics["null"] is None
    assert metrics["vector"]["plus"]["reached"] is False
    assert metrics["vector"]["plus"]["kl"] == (0.0 if kl == 0 else None)
    for file in result.folder.path.rglob("*.json"):
        strict_json(file)
    Steer(config).report(result).print(console(), result.folder.path)
    assert "KL not reached" in capsys.readouterr().out


def test_likelihoods_that_overflow_leave_no_half_results(settings, monkeypatch, capsys):
    import numpy as np

    def overflowed(self, vector=None, strength=0.0, unit="norm"):
        return np.full((2, self.n_pairs), math.nan if strength > 0 else -1.0)

    monkeypatch.setattr(steering.PropensityMeter, "log_likelihoods", overflowed)
    config = RunConfig(**settings)
    result = run_experiment(config)
    metrics = strict_json(result.folder.path / "metrics.json")
    assert metrics["vector"]["effect"] is None
    assert metrics["curve"][2]["margin"] is None
    assert metrics["monotone"] is False
    Steer(config).report(result).print(console(), result.folder.path)
    assert "KL not reached" in capsys.readouterr().out


def test_random_directions_and_questions_may_be_left_out(settings, capsys):
    settings["evaluation"]["random_directions"] = 0
    settings["completions"]["n_questions"] = 0
    config = RunConfig(**settings)
    result = run_experiment(config)
    assert result.metrics["null"] is None
    assert result.metrics["random_directions"] == []
    assert result.completions == []
    Steer(config).report(result).print(console(), result.folder.path)
    assert "random" not in capsys.readouterr().out


def test_what_was_stored_is_what_the_features_were_computed_from(whole):
    from saesteer.models.reading import PairActivations

    sae = load_sae(whole.vector.sae)
    site = "blocks.1.hook_resid_post"
    stored = PairActivations.load(whole.folder.path / f"activations/train.{site}.safetensors")
    codes = encode_pairs(sae, stored)
    assert codes.n_pairs == len(whole.folder.read_json("split.json")["train"])
    # A mirror's features are the residual stream's coordinates and their opposites.
    delta = torch.tensor(codes.delta.toarray())
    torch.testing.assert_close(
        (delta[:, :32] - delta[:, 32:]).float(), stored.deltas, rtol=1e-4, atol=1e-5
    )
