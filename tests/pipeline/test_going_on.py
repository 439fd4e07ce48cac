"""A run that was cut off, damaged or finished before is gone on with, and ends the same."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from saesteer.experiments import pairs_run
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import Steer
from saesteer.utils.errors import MismatchError, OutputError, SaesteerError

from .reading import numbers, strict_json


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
