"""An SAE trained from its settings: what it leaves, shares and refuses, and that it steers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import saesteer as ss
from saesteer.data import datasets_folder
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.train_sae import TrainSae, TrainSaeConfig
from saesteer.saes.corpus import pack_corpus
from saesteer.saes.doctor import doctor
from saesteer.saes.loading import load_sae
from saesteer.saes.table import load_feature_table
from saesteer.tracking import list_runs
from saesteer.utils.errors import DataError, SiteError

SITE, OTHER = "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def settings(tiny_model_folder, tmp_path_factory) -> dict[str, Any]:
    """Settings of a TopK SAE of the tiny GPT-2, which has no chat template here."""
    place = tmp_path_factory.mktemp("training")
    with (datasets_folder() / "prose.jsonl").open(encoding="utf-8") as lines:
        prose = "".join(json.loads(line)["text"] + " " for line in lines)
    pieces = [{"text": prose[start : start + 150]} for start in range(0, 30_000, 150)]
    (place / "prose.jsonl").write_text("\n".join(map(json.dumps, pieces)), encoding="utf-8")
    return {
        "model": str(tiny_model_folder("gpt2", False)),
        "site": SITE,
        "harvest_sites": [OTHER],
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
        "folder": str(place / "runs" / "sae"),
    }


def train(settings: dict[str, Any], **changes: Any) -> Any:
    return run_experiment(TrainSaeConfig(**(settings | changes)))


@pytest.fixture(scope="module")
def trained(settings) -> Any:
    return train(settings)


def test_a_configuration_becomes_a_sae_with_card_metrics_and_table(trained, settings):
    metrics = trained.metrics
    assert metrics["explained_variance"] > 0.5
    assert metrics["l0"] <= 12
    sae = ss.load_sae(trained.sae_folder)
    assert (sae.d_in, sae.d_sae, str(sae.site), sae.prepend_bos) == (32, 96, SITE, True)
    cfg = json.loads((trained.sae_folder / "cfg.json").read_text(encoding="utf-8"))
    assert cfg["dtype"] == "bfloat16"
    # SAEs lie in a folder of their own and are listed with the other runs.
    (listed,) = list_runs(Path(settings["folder"]).parent)
    assert (listed.kind, listed.status, listed.folder) == (
        "sae-train", "finished", trained.folder.path,
    )  # fmt: skip
    assert (trained.folder.path / "log.jsonl").read_text(encoding="utf-8").count("loss") > 3

    model = ss.load_model(settings["model"])
    held_out = pack_corpus(model.tokenizer, TrainSaeConfig(**settings)).held_out
    again = doctor(model, sae, held_out)
    assert again.explained_variance == pytest.approx(metrics["explained_variance"])
    card = trained.report.read_text(encoding="utf-8")
    assert SITE in card
    assert f"{metrics['explained_variance']:.4f}" in card
    table = load_feature_table(trained.sae_folder / "features.parquet")
    assert len(table) == 96
    assert table.max_activation.max() > 0


def test_a_model_is_steered_with_an_sae_trained_here(trained, tiny_settings):
    found = run_experiment(RunConfig(**tiny_settings("gpt2", chat=False, sae=trained.sae_folder)))
    metrics, measured = found.metrics, found.metrics["vector"]
    for side in ("plus", "minus"):
        assert measured[side]["reached"]
        assert measured[side]["kl"] == pytest.approx(0.05, rel=0.031)
        assert metrics["difference_in_means"][side]["kl"] == pytest.approx(0.05, rel=0.031)
    assert [row["multiple"] for row in metrics["curve"]] == [-1, 0, 1]
    low, middle, high = (row["margin"] for row in metrics["curve"])
    assert middle == pytest.approx(metrics["unsteered_margin"], abs=1e-5)
    assert measured["effect"]["effect"] == pytest.approx((high - low) / 2, abs=1e-5)
    assert len(metrics["random_directions"]) == 2
    strengths = {measured["minus"]["strength"], 0.0, measured["plus"]["strength"]}
    assert {record["strength"] for record in found.completions} == strengths
    assert len(found.completions) == 2 * 3
    # The vector is the sum of its weighted decoder rows.
    sae, vector = ss.load_sae(trained.sae_folder), found.vector
    rebuilt = torch.stack([f.weight * sae.decoder[f.index] for f in vector.sae_features]).sum(dim=0)
    torch.testing.assert_close(rebuilt, vector.raw, rtol=1e-4, atol=1e-5)
    assert all(feature.description for feature in vector.sae_features)
    assert vector.max_act is not None
    assert vector.sae_fingerprint == sae.fingerprint


def test_another_site_reuses_the_activations_but_not_the_folder(trained, settings, monkeypatch):
    monkeypatch.setattr(sys.modules["saesteer.saes.harvest"], "read_rows", None)
    other = train(settings, site=OTHER, harvest_sites=[SITE], epochs=1)
    assert other.folder.path != trained.folder.path
    assert str(load_sae(other.sae_folder).site) == OTHER
    assert len(list((Path(settings["folder"]) / "activations").iterdir())) == 1


def test_other_weights_and_other_texts_are_another_training(settings, make_model_folder, tmp_path):
    def folder(**changes: Any) -> Path:
        return TrainSae(TrainSaeConfig(**(settings | changes))).folder.path

    first = folder()
    assert folder(harvest_sites=[], folder=settings["folder"]) == first
    assert folder(model={"name": settings["model"], "threads": 2}) == first
    assert folder(model=str(make_model_folder("gpt2", seed=1, chat=False))).name != first.name
    texts = Path(settings["corpus"][0]["path"])
    (tmp_path / texts.name).write_text(texts.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert folder(corpus=[{"path": str(tmp_path / texts.name)}]).name != first.name


def test_what_does_not_fit_is_told_before_anything_is_loaded(settings, no_loading, tmp_path):
    settings = settings | {"folder": str(tmp_path / "runs")}
    for field in ({"site": "blocks.7.hook_resid_post"}, {"harvest_sites": ["blocks.7.hook_z"]}):
        with pytest.raises(SiteError, match="blocks 0 to 2"):
            train(settings, **field)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        train(settings, corpus=[{"path": "none.jsonl"}])
    assert not Path(settings["folder"]).exists()
