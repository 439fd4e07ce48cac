"""Everything that can be wrong is said before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import plan_run
from saesteer.utils.errors import (
    OutputError,
    SaeError,
)
from saesteer.utils.run_folder import RunFolder


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


def test_a_bundled_sae_that_is_not_there_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("saesteer.saes.loading.bundled_sae_folder", lambda: tmp_path / "assets")
    with pytest.raises(SaeError, match=r"SAE 'smollm2' is not at .*assets; install saesteer again"):
        plan_run(RunConfig(**{**settings, "sae": "smollm2"}))


def test_a_folder_that_fails_only_when_it_is_made_is_refused_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"link cannot be written .*choose another"):
        RunFolder(tmp_path / "link").create()
