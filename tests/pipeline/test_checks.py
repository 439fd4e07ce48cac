"""What a run is planned from, and that what does not fit is refused before it is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saesteer.experiments import context
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import Steer, plan_run
from saesteer.saes.table import save_feature_table
from saesteer.utils.errors import (
    ConfigError,
    DataError,
    MismatchError,
    OutputError,
    SaeError,
    SaesteerError,
    SiteError,
    SteeringError,
)
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder


@pytest.mark.parametrize(
    ("sae", "kind", "text"),
    [
        ({"site": "blocks.1.hook_nowhere"}, SiteError, r"no hook 'hook_nowhere'"),
        ({"gain": 0.05}, MismatchError, r"explains -?0\.\d+ of the variance .*not trained on"),
        ({"model_fingerprint": "f" * 64}, MismatchError, r"on other weights .*load that model"),
    ],
    ids=["hook", "misfit", "model"],
)
def test_an_sae_that_does_not_belong_is_refused_and_nothing_is_written(
    sae, kind, text, tiny_settings, mirror_sae
):
    config = RunConfig(**tiny_settings("llama", sae=mirror_sae(**sae)))
    with pytest.raises(kind, match=text):
        run_experiment(config)
    assert list(Path(config.folder).iterdir()) == []


def test_another_site_than_the_saes_is_refused_before_the_model_is_loaded(settings, monkeypatch):
    monkeypatch.setattr(context, "load_model", None)
    config = RunConfig(**settings, site="blocks.2.hook_resid_post")
    with pytest.raises(ConfigError, match=r"blocks\.2\.hook_resid_post is not where SAE .* lives"):
        run_experiment(config)
    assert list(Path(config.folder).iterdir()) == []


def test_a_feature_table_of_another_sae_is_refused(tiny_settings, mirror_sae):
    sae = mirror_sae()
    row = {"density": 0.1, "max_activation": 1.0, "mean_activation": 0.5, "description": "a word"}
    row |= {"top_tokens": [], "bottom_tokens": [], "contexts": []}
    table = pd.DataFrame([{"feature": index, **row} for index in range(5)])
    save_feature_table(table, sae / "features.parquet")
    with pytest.raises(MismatchError, match=r"lists 5 features and the SAE beside it has 64"):
        run_experiment(RunConfig(**tiny_settings("llama", sae=sae)))
    (sae / "features.parquet").write_bytes(b"cut off")
    with pytest.raises(SaeError, match=r"features\.parquet cannot be read"):
        run_experiment(RunConfig(**tiny_settings("llama", sae=sae)))


def test_texts_that_do_not_fit_the_context_are_told_before_anything_is_written(settings, tmp_path):
    def refused(kind: type[SaesteerError], text: str, **changes: dict[str, Any]) -> None:
        merged = {k: {**settings.get(k, {}), **v} for k, v in changes.items()}
        config = RunConfig(**{**settings, **merged})
        with pytest.raises(kind, match=text):
            run_experiment(config)
        assert list(Path(config.folder).iterdir()) == []

    (tmp_path / "long.txt").write_text("Why?\n" + "word " * 200, encoding="utf-8")
    refused(
        SteeringError,
        r"question 2 \('word .*\.max_new_tokens 4 is more than .* context of 192; lower",
        completions={"questions": str(tmp_path / "long.txt")},
    )
    refused(
        SteeringError,
        r"question 1 .*\.max_new_tokens 500",
        completions={"max_new_tokens": 500},
    )
    refused(DataError, r"context of 192; shorten it", evaluation={"request": "word " * 200})
    answer = {"question": "Why?", "answer": "Because of the cat."}
    (tmp_path / "short.jsonl").write_text(json.dumps(answer), encoding="utf-8")
    refused(
        DataError,
        r"short\.jsonl: its first 1 answers have \d+ tokens and KL needs at least 200",
        evaluation={"neutral": str(tmp_path / "short.jsonl")},
    )
    long = answer | {"answer": "word " * 200}
    (tmp_path / "long.jsonl").write_text(json.dumps(long), encoding="utf-8")
    refused(
        DataError,
        r"neutral answer of .*long\.jsonl .* with its prompt, .* context of 192; give shorter ones",
        evaluation={"neutral": str(tmp_path / "long.jsonl")},
    )
    refused(
        DataError,
        r"^a neutral answer of the bundled neutral_answers\.jsonl \('.* evaluation\.neutral, or",
        evaluation={"neutral": "neutral_answers"},
    )


def test_a_doubtful_fit_is_said_before_the_run(tiny_settings, mirror_sae):
    said = []
    progress: Any = Progress()
    progress.say = said.append
    config = RunConfig(**tiny_settings("llama", sae=mirror_sae(gain=0.2)))
    bench = Steer(config, progress)
    assert bench.sae.d_in == 32
    assert any("was not trained on this model or site" in line for line in said)


def test_limits_are_kept(settings, no_loading):
    settings["evaluation"] |= {"max_pairs": 3, "neutral_answers": 4}
    settings["completions"] |= {"n_questions": 1}
    plan = plan_run(RunConfig(**settings))
    assert [pair.id for pair in plan.held_out] == [pair.id for pair in plan.split.test][:3]
    assert (len(plan.answers), len(plan.questions)) == (4, 1)


def test_the_same_plan_has_the_same_folder_and_other_data_another(settings, no_loading, tmp_path):
    first = plan_run(RunConfig(**settings)).folder
    assert plan_run(RunConfig(**settings)).folder == first
    lines = Path(settings["pairs"]["source"]).read_text(encoding="utf-8")
    source = tmp_path / "pairs.jsonl"
    source.write_text(lines.replace("glad", "kind", 1), encoding="utf-8")
    here = {**settings, "pairs": {"source": str(source)}}
    changed = plan_run(RunConfig(**here)).folder
    source.write_text(lines, encoding="utf-8")
    assert plan_run(RunConfig(**here)).folder.name != changed.name


def test_a_bundled_sae_that_is_not_there_is_refused(settings, no_loading, tmp_path, monkeypatch):
    monkeypatch.setattr("saesteer.saes.loading.bundled_sae_folder", lambda: tmp_path / "assets")
    with pytest.raises(SaeError, match=r"SAE 'smollm2' is not at .*assets; install saesteer again"):
        plan_run(RunConfig(**{**settings, "sae": "smollm2"}))


def test_a_folder_that_fails_only_when_it_is_made_is_refused_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"link cannot be written .*choose another"):
        RunFolder(tmp_path / "link").create()
