"""An SAE trained from its settings: what it leaves, what it shares, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saesteer as ss
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.train_sae import TrainSaeConfig
from saesteer.saes.doctor import doctor
from saesteer.saes.loading import load_sae
from saesteer.saes.table import load_feature_table
from saesteer.tracking import list_runs
from saesteer.utils.errors import DataError, SiteError

SITE, OTHER = "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(40)])
    texts = [" ".join(rng.choice(words, rng.integers(10, 40))) for _ in range(150)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def settings(tiny_model_folder, corpus, tmp_path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_folder("llama")),
        "site": SITE,
        "harvest_sites": [OTHER],
        "corpus": [{"path": corpus}],
        "held_out": 0.2,
        "context": 24,
        "d_sae": 96,
        "k": 12,
        "batch": 64,
        "epochs": 2,
        "learning_rate": 5e-3,
        "warmup_steps": 10,
        "dead_after": 3000,
        "folder": str(tmp_path / "runs" / "sae"),
    }


def train(settings: dict[str, Any], **changes: Any) -> Any:
    return run_experiment(TrainSaeConfig(**(settings | changes)))


def test_a_configuration_becomes_a_sae_with_card_metrics_and_table(settings, tmp_path):
    found = train(settings)
    metrics = found.metrics
    assert metrics["explained_variance"] > 0.5
    assert metrics["l0"] <= 12
    sae = ss.load_sae(found.sae_folder)
    assert (sae.d_in, sae.d_sae, str(sae.site), sae.prepend_bos) == (32, 96, SITE, True)
    cfg = json.loads((found.sae_folder / "cfg.json").read_text(encoding="utf-8"))
    assert cfg["dtype"] == "bfloat16"
    # SAEs lie in a folder of their own and are listed with the other runs.
    (listed,) = list_runs(tmp_path / "runs")
    assert (listed.kind, listed.status, listed.folder) == (
        "sae-train", "finished", found.folder.path,
    )  # fmt: skip
    assert (found.folder.path / "log.jsonl").read_text(encoding="utf-8").count("loss") > 3

    from saesteer.models import load_model
    from saesteer.saes.corpus import pack_corpus

    model = load_model(settings["model"])
    held_out = pack_corpus(model.tokenizer, TrainSaeConfig(**settings)).held_out
    again = doctor(model, sae, held_out)
    assert again.explained_variance == pytest.approx(metrics["explained_variance"])
    card = found.report.read_text(encoding="utf-8")
    assert SITE in card
    assert f"{metrics['explained_variance']:.4f}" in card
    table = load_feature_table(found.sae_folder / "features.parquet")
    assert len(table) == 96
    assert table.max_activation.max() > 0


def test_another_site_reuses_the_activations_but_not_the_folder(settings, monkeypatch):
    first = train(settings)
    monkeypatch.setattr(sys.modules["saesteer.saes.harvest"], "read_rows", None)
    other = train(settings, site=OTHER, harvest_sites=[SITE])
    assert other.folder.path != first.folder.path
    assert str(load_sae(other.sae_folder).site) == OTHER
    assert len(list((Path(settings["folder"]) / "activations").iterdir())) == 1


def test_other_weights_and_other_texts_are_another_training(settings, make_model_folder, tmp_path):
    from saesteer.experiments.train_sae import TrainSae

    def folder(**changes: Any) -> Path:
        return TrainSae(TrainSaeConfig(**(settings | changes))).folder.path

    first = folder()
    assert folder(harvest_sites=[], folder=settings["folder"]) == first
    assert folder(model={"name": settings["model"], "threads": 2}) == first
    assert folder(model=str(make_model_folder("llama", seed=1))).name != first.name
    texts = Path(settings["corpus"][0]["path"])
    (tmp_path / texts.name).write_text(texts.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert folder(corpus=[{"path": str(tmp_path / texts.name)}]).name != first.name


def test_what_does_not_fit_is_told_before_anything_is_loaded(settings, monkeypatch):
    monkeypatch.setattr(sys.modules["saesteer.experiments.context"], "load_model", None)
    for field in ({"site": "blocks.7.hook_resid_post"}, {"harvest_sites": ["blocks.7.hook_z"]}):
        with pytest.raises(SiteError, match="blocks 0 to 2"):
            train(settings, **field)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        train(settings, corpus=[{"path": "none.jsonl"}])
    assert not Path(settings["folder"]).exists()
