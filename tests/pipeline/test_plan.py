"""Everything that can be wrong is said before anything is loaded or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import plan_run
from saesteer.utils.errors import (
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    SaeError,
    SaesteerError,
)
from saesteer.utils.run_folder import RunFolder


@pytest.fixture
def settings(tiny_settings, no_loading) -> dict[str, Any]:
    """Good settings, where loading a model or an SAE fails the test."""
    return tiny_settings("llama")


@pytest.fixture
def refused(settings):
    """Return a function that asserts that settings are refused and nothing is written."""

    def check(kind: type[SaesteerError], text: str, **changes: Any) -> None:
        merged = {**settings}
        for key, value in changes.items():
            merged[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        with pytest.raises(kind, match=text) as told:
            run_experiment(RunConfig(**merged))
        assert "\n" not in str(told.value)
        assert list(Path(settings["folder"]).iterdir()) == []

    return check


def test_limits_are_kept(settings):
    settings["evaluation"] |= {"max_pairs": 3, "neutral_answers": 4}
    settings["completions"] |= {"n_questions": 1}
    plan = plan_run(RunConfig(**settings))
    assert [pair.id for pair in plan.held_out] == [pair.id for pair in plan.split.test][:3]
    assert (len(plan.answers), len(plan.questions)) == (4, 1)


def test_the_same_plan_has_the_same_folder_and_other_data_another(settings, tmp_path):
    first = plan_run(RunConfig(**settings)).folder
    assert plan_run(RunConfig(**settings)).folder == first
    lines = Path(settings["pairs"]["source"]).read_text(encoding="utf-8")
    source = tmp_path / "pairs.jsonl"
    source.write_text(lines.replace("glad", "kind", 1), encoding="utf-8")
    here = {**settings, "pairs": {"source": str(source)}}
    changed = plan_run(RunConfig(**here)).folder
    source.write_text(lines, encoding="utf-8")
    assert plan_run(RunConfig(**here)).folder.name != changed.name


def test_unknown_methods_are_refused(refused):
    refused(
        ConfigError,
        r"clustering\.method 'aglomerative' is unknown \(did you mean 'agglomerative'\?\)",
        clustering={"method": "aglomerative"},
    )
    refused(
        ConfigError, r"selection\.criterion 'zzz' .*; choose one", selection={"criterion": "zzz"}
    )
    refused(ConfigError, r"format is 'xml'", pairs={"format": "xml"})


def test_pairs_that_are_not_there_or_have_one_side_are_refused(refused, tmp_path):
    refused(DataError, r"'agreeablenes' \(did you mean", pairs={"source": "agreeablenes"})
    refused(DataError, r".", pairs={"source": ""})
    one_sided = tmp_path / "one.jsonl"
    lines = [{"positive": "I like you.", "negative": "I do not."}, {"positive": "Alone."}]
    one_sided.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    refused(DataError, r"one\.jsonl:2: .*'negative' is missing", pairs={"source": str(one_sided)})
    (tmp_path / "empty.jsonl").write_text("")
    refused(DataError, r"empty\.jsonl", pairs={"source": str(tmp_path / "empty.jsonl")})


def test_splits_that_leave_nothing_are_refused(refused, tmp_path):
    refused(
        ConfigError,
        r"pairs\.validation and pairs\.test leave no pairs to train on",
        pairs={"validation": 0.5, "test": 0.5},
    )
    few = [("Cats sleep all day.", "Dogs bark."), ("We sing.", "They howl."), ("Yes.", "Never!")]
    lines = [json.dumps({"positive": p, "negative": n}) for p, n in few]
    (tmp_path / "few.jsonl").write_text("\n".join(lines), encoding="utf-8")
    refused(
        DataError,
        r"leaves 1 training and 1 test pairs; give more",
        pairs={"source": str(tmp_path / "few.jsonl")},
    )


def test_a_model_that_is_not_there_is_refused(refused, tmp_path):
    refused(ModelError, r"holds no config\.json", model={"name": str(tmp_path)})
    refused(ModelError, r"none\.gguf is not there", model={"name": str(tmp_path / "none.gguf")})


def test_an_sae_that_is_not_there_is_refused(refused, tmp_path, monkeypatch):
    refused(SaeError, r"holds no cfg\.json", sae=str(tmp_path))
    refused(SaeError, r"no release 'gpt2-small-res-jp'; did you mean", sae="gpt2-small-res-jp:x")
    monkeypatch.setattr("saesteer.saes.loading.bundled_sae_folder", lambda: tmp_path / "assets")
    refused(SaeError, r"SAE 'smollm2' is not at .*assets; install saesteer again", sae="smollm2")


def test_answers_and_questions_that_are_not_there_are_refused(refused, tmp_path):
    refused(DataError, r"no\.jsonl", evaluation={"neutral": str(tmp_path / "no.jsonl")})
    refused(DataError, r"no\.txt", completions={"questions": str(tmp_path / "no.txt")})


@pytest.mark.parametrize("folder", ["x" * 300, "a\x00b"])
def test_a_name_that_can_be_no_folder_is_refused(folder, refused, tmp_path):
    refused(ConfigError, r"cannot be used \(.*\); choose another", folder=f"{tmp_path}/{folder}")


def test_a_folder_that_fails_only_when_it_is_made_is_refused_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"link cannot be written .*choose another"):
        RunFolder(tmp_path / "link").create()
