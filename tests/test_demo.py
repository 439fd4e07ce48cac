"""The demo on the real model: it steers, both ways, and more than chance does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saesteer.experiments.steer.config import RunConfig
from saesteer.saes import doctor, load_sae, resolve_sae, rows_for
from saesteer.saes.labels import own_table
from saesteer.saes.loading import BUNDLED_SAES
from saesteer.utils.settings import load_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def demo(given_smollm2, tmp_path_factory):
    """The demo's own settings with fewer pairs, directions and completions."""
    from saesteer.experiments.registry import run_experiment

    config = load_config(
        ROOT / "configs/agreeableness.yaml",
        [
            f"folder={tmp_path_factory.mktemp('runs')}",
            "pairs.max_pairs=120",
            "evaluation.random_directions=3",
            "evaluation.max_pairs=16",
            "evaluation.multiples=[-1.0, 0.0, 1.0]",
            "completions.n_questions=1",
            "completions.max_new_tokens=12",
        ],
        kind=RunConfig,
    )
    with given_smollm2():
        return run_experiment(config)


@pytest.mark.real
@pytest.mark.slow
def test_held_out_pairs_move_both_ways_and_beyond_random_directions(demo):
    metrics, sae = demo.metrics, load_sae("smollm2")
    assert metrics["vector"]["plus"]["reached"] and metrics["vector"]["minus"]["reached"]
    assert metrics["vector"]["effect"]["effect"] > 0.1
    assert metrics["vector"]["effect"]["low"] > 0
    assert metrics["null"]["beyond_all"]
    below, unsteered, above = [row["margin"] for row in metrics["curve"]]
    assert below < unsteered < above
    assert unsteered == pytest.approx(metrics["unsteered_margin"], abs=1e-6)
    # The vector is its weighted features.
    features = demo.vector.sae_features
    assert 1 <= len(features) <= 64
    assert all(feature.description for feature in features)
    rebuilt = torch.stack([f.weight * sae.decoder[f.index] for f in features]).sum(dim=0)
    cosine = torch.cosine_similarity(rebuilt, demo.vector.direction, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("site", BUNDLED_SAES)
def test_the_bundled_saes_belong_to_the_bundled_model(smollm2, site):
    from saesteer.data import datasets_folder, read_texts

    sae = load_sae(f"smollm2:{site}")
    assert str(sae.site) == site and own_table(resolve_sae(sae.name)) is not None
    texts = list(read_texts(datasets_folder() / "prose.jsonl", limit=5))
    report = doctor(smollm2, sae, rows_for(smollm2, sae, texts, context=256))
    assert report.explained_variance > 0.8
    assert report.l0 <= 64
    assert report.ce_score > 0.95
    assert 0.9 < report.norm_ratio < 1.05
