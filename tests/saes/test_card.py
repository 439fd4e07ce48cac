"""What goes with a trained SAE: rounded weights, card, metrics, table; whole or told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saesteer.saes import card as module
from saesteer.saes.card import finish_sae, sae_card
from saesteer.saes.corpus import CorpusSource, PackedCorpus
from saesteer.saes.doctor import DoctorReport
from saesteer.saes.loading import load_sae
from saesteer.saes.table import load_feature_table
from saesteer.saes.training import SaeTrainingConfig
from saesteer.utils.errors import OutputError

REPORT = DoctorReport(0.8912, 63.4, 3.2, 3.3, 9.1, 0.9831, 0.951, 44.0, 0.0123, 12_345)


@pytest.fixture
def config() -> SaeTrainingConfig:
    return SaeTrainingConfig(
        site="blocks.1.hook_resid_post",
        corpus=[
            CorpusSource(path="somewhere/private/prose.jsonl.gz"),
            CorpusSource(hub="her/texts", style="chat"),
        ],
        d_sae=64,
        k=12,
    )


@pytest.fixture
def trained(model, rows, perfect) -> tuple[Path, Any, PackedCorpus]:
    """An SAE's folder, its model and its texts."""
    return perfect, model, PackedCorpus(train=list(rows), held_out=list(rows[:6]))


def test_the_card_names_site_data_tokens_settings_and_figures(config):
    text = sae_card(config, "tiny", REPORT, 1000)
    for part in (
        "# SAE of tiny at blocks.1.hook_resid_post",
        "64 features, k = 12",
        "- prose.jsonl.gz (plain)",
        "- her/texts (chat)",
        "1,000 distinct tokens, 2,000 seen in all (epochs: 2)",
        "3% of the documents were held out",
        "4096 tokens a step",
        "12,345 tokens",
        "| explained variance | 0.8912 |",
        "| L0 | 63.4 |",
        "| cross-entropy recovered | 0.9831 |",
        "| loss clean / spliced / ablated | 3.200 / 3.300 / 9.100 |",
        "| features that never fired | 1.23% |",
    ):
        assert part in text, part
    # The card is committed, and where somebody's files lie is nobody's business.
    assert "private" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_card_says_how_many_tokens_were_used_and_how_k_fell(config):
    changes = {"tokens": 600, "k_start": 40, "k_steps": 70, "dead_weight": 0.5, "autocast": False}
    text = sae_card(config.model_copy(update=changes), "tiny", REPORT, 1000)
    assert "600 distinct tokens" in text
    assert "k falling from 40 over 70 steps" in text
    assert "weight 0.5" in text
    assert "autocast off" in text
    assert "falling" not in sae_card(config, "tiny", REPORT, 1000)


def test_what_was_measured_is_what_was_saved(trained):
    report = finish_sae(*trained)
    weights = load_file(trained[0] / "sae_weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    cfg = json.loads((trained[0] / "cfg.json").read_text(encoding="utf-8"))
    assert (cfg["dtype"], cfg["device"]) == ("bfloat16", "cpu")
    metrics = json.loads((trained[0] / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == report.as_dict()
    assert report.n_tokens == sum(sum(row.kept) for row in trained[2].held_out)
    assert len(load_feature_table(trained[0] / "features.parquet")) == load_sae(trained[0]).d_sae
    assert not list(trained[0].glob(".*"))


def test_finishing_twice_changes_nothing(trained):
    def content() -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in trained[0].iterdir() if f.suffix != ".parquet"}

    finish_sae(*trained)
    before = content()
    finish_sae(*trained)
    assert content() == before


def test_a_share_that_cannot_be_computed_is_null_in_the_metrics(trained, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(
        module, "doctor", lambda *args, **kwargs: replace(REPORT, ce_score=float("nan"))
    )
    finish_sae(*trained)
    text = (trained[0] / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["ce_score"] is None


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json", "metrics.json"])
def test_a_full_disk_is_told_and_keeps_the_old_file(name, trained, monkeypatch):
    path = trained[0] / name
    before = path.read_bytes() if path.exists() else None
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=rf"{name} cannot be written .*No space left.*free"):
        finish_sae(*trained)
    assert (path.read_bytes() if path.exists() else None) == before
    assert not list(trained[0].glob(".*"))
