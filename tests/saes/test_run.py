from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from saesteer.experiments.train_sae import train_sae
from saesteer.saes.doctor import doctor
from saesteer.saes.loading import load_sae
from saesteer.saes.settings import SaeTrainingConfig
from saesteer.saes.table import load_feature_table
from saesteer.tracking import list_runs
from saesteer.utils.errors import DataError, SiteError

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def corpus(tmp_path, make_texts) -> str:
    path = tmp_path / "texts.jsonl"
    texts = make_texts(300, low=10, high=40)
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def settings(model_folder, corpus, tmp_path) -> dict[str, Any]:
    return {
        "model": str(model_folder),
        "site": SITE,
        "harvest_sites": ["blocks.0.hook_resid_post"],
        "corpus": [{"path": corpus}],
        "held_out": 0.2,
        "context": 24,
        "d_sae": 96,
        "k": 12,
        "batch": 64,
        "epochs": 3,
        "learning_rate": 5e-3,
        "warmup_steps": 10,
        "dead_after": 3000,
        "folder": str(tmp_path / "runs"),
    }


def test_a_configuration_becomes_a_sae_with_card_metrics_and_table(settings):
    config = SaeTrainingConfig(**settings)
    trained = train_sae(config)
    report = trained.report
    assert report is not None
    (found,) = list_runs(Path(config.folder))
    assert (found.kind, found.status, found.folder) == (
        "sae-train", "finished", trained.folder.parent,
    )  # fmt: skip
    assert report.explained_variance > 0.5
    assert report.l0 <= 12

    sae = load_sae(trained.folder)
    assert (sae.d_in, sae.d_sae, str(sae.site), sae.prepend_bos) == (32, 96, SITE, True)
    weights = json.loads((trained.folder / "cfg.json").read_text(encoding="utf-8"))
    assert weights["dtype"] == "bfloat16"
    again = doctor(trained.model, sae, trained.corpus.held_out)
    assert again.explained_variance == pytest.approx(report.explained_variance)

    metrics = json.loads((trained.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == pytest.approx(report.as_dict())
    card = (trained.folder / "README.md").read_text(encoding="utf-8")
    assert SITE in card
    assert f"{report.explained_variance:.4f}" in card
    table = load_feature_table(trained.folder / "features.parquet")
    assert len(table) == 96
    assert table.max_activation.max() > 0


def test_the_same_run_again_reads_and_trains_nothing(settings, monkeypatch):
    first = train_sae(SaeTrainingConfig(**settings))
    before = (first.folder / "sae_weights.safetensors").read_bytes()
    monkeypatch.setattr(sys.modules["saesteer.saes.harvest"], "read_rows", None)
    monkeypatch.setattr(sys.modules["saesteer.saes.training"], "_train_shard", None)
    again = train_sae(SaeTrainingConfig(**settings))
    assert again.folder == first.folder
    assert (again.folder / "sae_weights.safetensors").read_bytes() == before


def test_another_site_reuses_the_activations_but_not_the_folder(settings, monkeypatch):
    first = train_sae(SaeTrainingConfig(**settings, seed=0))
    monkeypatch.setattr(sys.modules["saesteer.saes.harvest"], "read_rows", None)
    sites = {"site": "blocks.0.hook_resid_post", "harvest_sites": [SITE]}
    other = train_sae(SaeTrainingConfig(**(settings | sites)))
    assert other.folder != first.folder
    assert str(load_sae(other.folder).site) == "blocks.0.hook_resid_post"
    assert len(list((Path(settings["folder"]) / "activations").iterdir())) == 1


def test_a_site_that_the_model_lacks_is_told_before_the_text_is_read(settings, monkeypatch):
    monkeypatch.setattr(sys.modules["saesteer.experiments.train_sae"], "pack_corpus", None)
    for field in ({"site": "blocks.7.hook_resid_post"}, {"harvest_sites": ["blocks.7.hook_z"]}):
        with pytest.raises(SiteError, match="blocks 0 to 2"):
            train_sae(SaeTrainingConfig(**(settings | field)))


def test_text_that_is_not_there_is_told(settings):
    with pytest.raises(DataError, match=r"none\.jsonl"):
        train_sae(SaeTrainingConfig(**(settings | {"corpus": [{"path": "none.jsonl"}]})))
