"""From pairs to a steered model on tiny models, with the evidence in the folder."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest
import torch

from saesteer.data import datasets_folder
from saesteer.experiments import steering
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import Steer
from saesteer.methods.features import encode_pairs
from saesteer.report.terminal import console
from saesteer.saes import load_sae
from saesteer.steering import SteeringVector

from .reading import numbers, strict_json


@pytest.fixture(scope="module")
def trained_sae(tiny_model_folder, tmp_path_factory):
    """A TopK SAE of the tiny GPT-2 without a chat template, trained here, with its table."""
    from saesteer.experiments.train_sae import TrainSaeConfig

    place = tmp_path_factory.mktemp("training")
    with (datasets_folder() / "prose.jsonl").open(encoding="utf-8") as lines:
        prose = "".join(json.loads(line)["text"] + " " for line in lines)
    pieces = [{"text": prose[start : start + 150]} for start in range(0, 30_000, 150)]
    (place / "prose.jsonl").write_text("\n".join(map(json.dumps, pieces)), encoding="utf-8")
    settings: dict[str, Any] = {
        "model": str(tiny_model_folder("gpt2", False)),
        "site": "blocks.1.hook_resid_post",
        "corpus": [{"path": str(place / "prose.jsonl")}],
        "held_out": 0.1,
        "context": 64,
        "d_sae": 96,
        "k": 12,
        "batch": 128,
        "epochs": 4,
        "learning_rate": 5e-3,
        "warmup_steps": 10,
        "dead_after": 3000,
        "autocast": False,
        "folder": str(place / "sae"),
    }
    trained = run_experiment(TrainSaeConfig(**settings))
    return trained.sae_folder, trained.doctor


@pytest.fixture(scope="module")
def second_family(tiny_settings, trained_sae):
    settings = tiny_settings("gpt2", chat=False, sae=trained_sae[0])
    settings["name"] = "second"
    return run_experiment(RunConfig(**settings))


def test_a_second_family_and_an_sae_trained_here_go_through_the_pipeline(
    second_family, trained_sae
):
    _, report = trained_sae
    assert report.explained_variance > 0.5
    assert report.l0 <= 12
    metrics = second_family.metrics
    assert metrics["vector"]["plus"]["reached"]
    assert metrics["vector"]["minus"]["reached"]
    for side in ("plus", "minus"):
        assert metrics["vector"][side]["kl"] == pytest.approx(0.05, rel=0.031)
        assert metrics["difference_in_means"][side]["kl"] == pytest.approx(0.05, rel=0.031)
    assert [row["multiple"] for row in metrics["curve"]] == [-1, 0, 1]
    assert metrics["curve"][1]["margin"] == pytest.approx(metrics["unsteered_margin"], abs=1e-5)
    assert metrics["vector"]["effect"]["effect"] == pytest.approx(
        (metrics["curve"][2]["margin"] - metrics["curve"][0]["margin"]) / 2, abs=1e-5
    )
    assert len(metrics["random_directions"]) == 2
    assert len(second_family.completions) == 2 * 3
    assert {record["strength"] for record in second_family.completions} == {
        metrics["vector"]["minus"]["strength"],
        0.0,
        metrics["vector"]["plus"]["strength"],
    }


def test_the_vector_is_the_sum_of_its_weighted_decoder_rows(second_family, trained_sae):
    sae = load_sae(trained_sae[0])
    vector = second_family.vector
    rebuilt = torch.stack([f.weight * sae.decoder[f.index] for f in vector.sae_features]).sum(dim=0)
    torch.testing.assert_close(rebuilt, vector.raw, rtol=1e-4, atol=1e-5)
    assert all(feature.description for feature in vector.sae_features)
    assert vector.max_act is not None
    assert vector.sae_fingerprint == sae.fingerprint


def test_a_finished_run_holds_all_that_the_readme_names(second_family):
    folder = second_family.folder.path
    for name in ("config", "split", "run", "fit", "metrics", "completions", "features"):
        assert strict_json(folder / f"{name}.json")
    assert strict_json(folder / "metrics.json") == second_family.metrics
    assert (folder / "report.html").stat().st_size > 1000
    table = pd.read_parquet(folder / "features.parquet")
    assert list(table["feature"]) == [row["feature"] for row in second_family.features]
    record = strict_json(folder / "run.json")
    assert record["model_fingerprint"] == second_family.vector.model_fingerprint
    assert record["versions"]["torch"] == torch.__version__
    assert SteeringVector.load(folder).norm == second_family.vector.norm
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
