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
)
from saesteer.utils.run_folder import RunFolder


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {
        **settings,
        **{
            k: {**settings.get(k, {}), **v} if isinstance(v, dict) else v
            for k, v in changes.items()
        },
    }


@pytest.fixture
def settings(tiny_settings, no_loading) -> dict[str, Any]:
    """Good settings, where loading a model or an SAE fails the test."""
    return tiny_settings("llama")


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


@pytest.mark.parametrize(
    ("kind", "text", "changes"),
    [
        (
            ConfigError,
            r"clustering\.method: 'aglomerative' is not known \(did you mean 'agglomerative'\?\)",
            {"clustering": {"method": "aglomerative"}},
        ),
        (
            ConfigError,
            r"selection\.criterion: 'zz' is not known",
            {"selection": {"criterion": "zz"}},
        ),
        (ConfigError, r"format is 'xml'", {"pairs": {"format": "xml"}}),
        (DataError, r"'agreeablenes' \(did you mean", {"pairs": {"source": "agreeablenes"}}),
        (DataError, r"one\.jsonl:2: .*'negative' is missing", {"pairs": {"source": "one.jsonl"}}),
        (
            ConfigError,
            r"pairs\.validation and pairs\.test leave no pairs to train on",
            {"pairs": {"validation": 0.5, "test": 0.5}},
        ),
        (
            DataError,
            r"leaves 1 training and 1 test pairs; give more",
            {"pairs": {"source": "few.jsonl"}},
        ),
        (ModelError, r"none\.gguf is not there", {"model": {"name": "none.gguf"}}),
        (SaeError, r"no release 'gpt2-small-res-jp'; did you", {"sae": "gpt2-small-res-jp:x"}),
        (DataError, r"no\.jsonl", {"evaluation": {"neutral": "no.jsonl"}}),
        (DataError, r"no\.txt", {"completions": {"questions": "no.txt"}}),
        (ConfigError, r"cannot be used \(.*\); choose another", {"folder": "x" * 300}),
        (ConfigError, r"cannot be used \(.*\); choose another", {"folder": "a\x00b"}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(
    kind, text, changes, settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    one_sided = [{"positive": "I like you.", "negative": "I do not."}, {"positive": "Alone."}]
    few = [("Cats sleep all day.", "Dogs bark."), ("We sing.", "They howl."), ("Yes.", "Never!")]
    files = {
        "one.jsonl": one_sided,
        "few.jsonl": [{"positive": p, "negative": n} for p, n in few],
    }
    for name, lines in files.items():
        Path(name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=text) as told:
        run_experiment(RunConfig(**changed(settings, changes)))
    assert "\n" not in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert list(Path(settings["folder"]).iterdir()) == []


def test_a_bundled_sae_that_is_not_there_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("saesteer.saes.loading.bundled_sae_folder", lambda: tmp_path / "assets")
    with pytest.raises(SaeError, match=r"SAE 'smollm2' is not at .*assets; install saesteer again"):
        plan_run(RunConfig(**{**settings, "sae": "smollm2"}))


def test_a_folder_that_fails_only_when_it_is_made_is_refused_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"link cannot be written .*choose another"):
        RunFolder(tmp_path / "link").create()
