"""From pairs to a steered model on tiny models, with the evidence in the folder.

And a run that was cut off, damaged or finished before is gone on with, and ends the same.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from saesteer.experiments import pairs_run, steering
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import STAGES, Steer
from saesteer.methods.features import encode_pairs
from saesteer.models.reading import PairActivations
from saesteer.report.terminal import console
from saesteer.saes import load_sae
from saesteer.steering import SteeringVector
from saesteer.utils.errors import MismatchError, OutputError, SaesteerError


def strict_json(path: Path) -> Any:
    """Read JSON as a strict reader does, to whom NaN and Infinity are no words."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def tensors(file: Path) -> dict[str, Any]:
    """A safetensors file, whose header is written in no fixed order."""
    with safe_open(file, "pt") as opened:
        kept = {name: opened.get_tensor(name).numpy().tobytes() for name in opened.keys()}  # noqa: SIM118
        return kept | dict(opened.metadata())


def numbers(folder: Path) -> dict[str, Any]:
    """What must be the same in every run of the same settings, byte for byte."""
    metrics = strict_json(folder / "metrics.json")
    assert set(metrics.pop("seconds")) == set(STAGES)
    # Times differ, the figure has random ids of its parts, and the settings name their folder.
    other = ("metrics.json", "run.json", "config.json", "report.html")
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    kept: dict[str, Any] = {
        name: tensors(file) if file.suffix == ".safetensors" else file.read_bytes()
        for name, file in files.items()
        if name not in other and not name.startswith("stages")
    }
    return kept | {"metrics": json.dumps(metrics).encode()}


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


def test_vectors_that_were_scored_before_the_cut_are_not_scored_again(settings, whole, monkeypatch):
    config = RunConfig(**settings)
    measure = pairs_run.EffectMeter.measure
    calls: Counter[str] = Counter()

    def counted(self, vector, *args, **rest):
        calls[f"{vector.method} {vector.name}"] += 1
        if sum(calls.values()) == 3:
            raise KeyboardInterrupt
        return measure(self, vector, *args, **rest)

    monkeypatch.setattr(pairs_run.EffectMeter, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config)
    resumed = run_experiment(config)
    assert sorted(calls.values()) == [1, 1, 1, 2]
    assert numbers(resumed.folder.path) == numbers(whole.folder.path)


def test_the_effect_is_told_before_the_null_is_measured(settings, whole):
    experiment, heard = Steer(RunConfig(**settings)), []

    class Enough(Exception):
        pass

    def watch(metrics):
        heard.append(experiment.headline(metrics)["effect"])
        raise Enough

    experiment.watch = watch
    with pytest.raises(Enough):
        experiment.run()
    assert heard == [whole.metrics["vector"]["effect"]["effect"]]
    assert [file.name for file in experiment.folder.path.glob("evaluation/*")] == [
        "00-clustered_sae.json"
    ]


def test_a_damaged_file_is_named_and_made_again_once_it_is_deleted(copy_of_whole, whole):
    config, folder = copy_of_whole
    for name, damage, undone in (
        ("features.json", 0.5, None),
        ("vector.safetensors", 0, None),
        # What a later stage needs, when that stage is to be done again.
        ("evaluation/00-clustered_sae.json", 0.5, "evaluation"),
        ("activations/train.blocks.1.hook_resid_post.safetensors", 0.5, "features"),
        ("run.json", 0.5, "completions"),
    ):
        if undone is not None:
            (folder / "stages" / f"{undone}.json").unlink()
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * damage)])
        with pytest.raises(SaesteerError, match=rf"{path.name}.*delete it") as told:
            run_experiment(config)
        assert "\n" not in str(told.value)
        path.unlink()
        assert numbers(run_experiment(config).folder.path) == numbers(whole.folder.path), name


def test_a_result_that_is_json_but_no_result_is_named(copy_of_whole):
    config, folder = copy_of_whole
    (folder / "metrics.json").unlink()
    for content in ("[]", '{"effect": {}}'):
        (folder / "evaluation/01-difference_in_means.json").write_text(content)
        with pytest.raises(OutputError, match=r"01-difference_in_means\.json holds no result"):
            run_experiment(config)


def test_weights_that_changed_in_the_middle_of_a_run_are_told(copy_of_whole):
    config, folder = copy_of_whole
    (folder / "stages/features.json").unlink()
    record = strict_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps(record | {"sae_fingerprint": "other"}))
    with pytest.raises(MismatchError, match=r"begun with other weights of the sae; delete"):
        run_experiment(config)
