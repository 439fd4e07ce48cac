"""Training goes on after a kill; what goes with the SAE is whole or told."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saesteer.saes import card as module
from saesteer.saes.card import finish_sae, sae_card
from saesteer.saes.corpus import CorpusSource, PackedCorpus
from saesteer.saes.doctor import DoctorReport
from saesteer.saes.harvest import Harvest
from saesteer.saes.loading import load_sae
from saesteer.saes.table import load_feature_table
from saesteer.saes.training import SaeTrainingConfig, train_topk
from saesteer.utils.errors import OutputError, SaeError
from saesteer.utils.progress import Progress, Task

MODULE = sys.modules["saesteer.saes.training"]
SITE = "blocks.1.hook_resid_post"
METADATA = {"model_name": "tiny", "hook_name": SITE, "prepend_bos": True}
CPU = torch.device("cpu")


def sparse_mixtures(n: int, seed: int) -> torch.Tensor:
    """Activations with a structure to find: three of 24 directions, far from the origin."""
    fixed = torch.Generator().manual_seed(99)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=fixed), dim=1)
    centre = torch.randn(16, generator=fixed) * 40
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, 24, generator=generator).topk(3).indices
    drawn = 10 + 20 * torch.rand(n, 3, generator=generator)
    strength = torch.zeros(n, 24).scatter_(1, chosen, drawn)
    return strength @ directions + centre


@pytest.fixture
def write_shards(tmp_path):
    def write(shards: list[torch.Tensor], name: str = "activations") -> Harvest:
        for number, values in enumerate(shards):
            folder = tmp_path / name / f"{number:05d}"
            folder.mkdir(parents=True)
            save_file({"activations": values}, folder / f"{SITE}.safetensors")
        return Harvest(tmp_path / name, tuple(range(len(shards))))

    return write


@pytest.fixture
def harvested(write_shards) -> Harvest:
    return write_shards([sparse_mixtures(520, seed) for seed in range(5)])


def settings(**fields: Any) -> SaeTrainingConfig:
    base: dict[str, Any] = {
        "site": SITE,
        "corpus": [CorpusSource(path="unread.jsonl")],
        "d_sae": 48,
        "k": 4,
        "batch": 64,
        "epochs": 3,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "dead_after": 2000,
        "autocast": False,
    }
    return SaeTrainingConfig(**(base | fields))


def train(harvested: Harvest, folder, progress=None, **fields: Any):
    return train_topk(
        harvested, settings(**fields), METADATA, folder, device=CPU, progress=progress
    )


class Breaking(Progress):
    """Is interrupted by the user after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def task(self, name: str, total: float, unit: str = "") -> Task:
        outer = self

        class BreakingTask(Task):
            def advance(self, amount: float = 1, note: str = "") -> None:
                if note:
                    outer.left -= 1
                    if outer.left < 0:
                        raise KeyboardInterrupt

        return BreakingTask(None, name, total, unit)


def explained_variance(x: torch.Tensor, rebuilt: torch.Tensor) -> float:
    return 1 - float((x - rebuilt).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum())


def test_a_trained_sae_explains_what_it_has_not_seen_with_the_scale_folded_in(
    harvested, tmp_path, monkeypatch
):
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    folder = train(harvested, tmp_path / "run")
    sae = load_sae(folder)
    x = sparse_mixtures(2000, seed=77)
    assert explained_variance(x, sae.reconstruct(x)) > 0.5
    assert float((sae.encode(x) != 0).sum(dim=1).float().mean()) <= 4
    assert (sae.d_in, sae.d_sae, sae.architecture) == (16, 48, "topk")
    assert (str(sae.site), sae.prepend_bos) == (SITE, True)
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as file:
        record = json.loads(file.metadata()["saesteer"])
        weights = {
            name.removeprefix("sae."): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith("sae.")
        }
    inside = TopKTrainingSAE(TopKTrainingSAEConfig.from_dict(record["cfg"]))
    inside.load_state_dict(weights)
    scale = record["scale"]
    first = sparse_mixtures(520, seed=0)
    spread = (first - first.mean(dim=0)).norm(dim=1).mean()
    assert scale == pytest.approx(float(spread) / 4, rel=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(sae.reconstruct(x), inside(x / scale) * scale)
        torch.testing.assert_close(sae.encode(x), inside.encode(x / scale) * scale)
    # A finished run is not trained again.
    monkeypatch.setattr(MODULE._Training, "train", None)
    assert load_sae(train(harvested, tmp_path / "run")).fingerprint == sae.fingerprint


@pytest.mark.parametrize("falling", [{}, {"k_start": 24, "k_steps": 60}])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    harvested, tmp_path, monkeypatch, falling
):
    monkeypatch.setattr(MODULE, "CHECKPOINT_EVERY_SHARDS", 2)
    whole = train(harvested, tmp_path / "whole", **falling)
    expected = load_file(whole / "sae_weights.safetensors")
    # Before the first checkpoint, and between two.
    for steps in (3, 21):
        folder = tmp_path / f"cut {steps}"
        with pytest.raises(KeyboardInterrupt):
            train(harvested, folder, progress=Breaking(steps), **falling)
        assert (folder / "checkpoint.safetensors").is_file() == (steps > 16)
        assert not (folder / "sae").exists()
        found = load_file(train(harvested, folder, **falling) / "sae_weights.safetensors")
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    # More features may fire at first, and k at the end.
    sae, x = load_sae(whole), sparse_mixtures(500, seed=77)
    assert int((sae.encode(x) != 0).sum(dim=1).max()) <= 4
    assert explained_variance(x, sae.reconstruct(x)) > 0.5
    with pytest.raises(SaeError, match=r"fall to k over 500 steps and the training has 120"):
        train(harvested, tmp_path / "long", k_start=24, k_steps=500)


def test_what_cannot_be_trained_on_is_refused_with_the_way_out(harvested, write_shards, tmp_path):
    with pytest.raises(SaeError, match=r"diverged at step \d+ .*lower learning_rate"):
        train(harvested, tmp_path / "run", learning_rate=1e38, warmup_steps=0)
    assert not (tmp_path / "run" / "sae").exists()
    values = sparse_mixtures(520, seed=0)
    values[100, 3] = math.nan
    with pytest.raises(SaeError, match=r"hold NaN or infinity.*float32"):
        train(write_shards([sparse_mixtures(520, seed=1), values], "nan"), tmp_path / "nans")
    for lengths in ([40, 40], []):
        shards = write_shards([values[:n] for n in lengths], f"few {len(lengths)}")
        text = rf"the {sum(lengths)} tokens in .* do not fill one batch of 64 .*lower batch"
        with pytest.raises(SaeError, match=text):
            train(shards, tmp_path / "few")


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_not_continued(harvested, tmp_path):
    resource = pytest.importorskip("resource")
    train(harvested, tmp_path / "run", epochs=1)
    with pytest.raises(SaeError, match=r"d_sae and k of \(48, 4\).*\(48, 6\).*another folder"):
        train(harvested, tmp_path / "run", epochs=1, k=6)
    file = tmp_path / "run" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SaeError, match=r"checkpoint .* cannot be read .*delete it"):
        train(harvested, tmp_path / "run", epochs=1)
    # Nor does a full disk leave a draft.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"checkpoint\S* cannot be written"):
            train(harvested, tmp_path / "new", epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path / "new") == []


def test_a_bad_field_is_refused_by_name():
    both = {"path": "a.jsonl", "hub": "her/texts"}
    for fields, told in (
        ({"corpus": []}, "corpus"),
        ({"corpus": [both]}, "exactly one of path and hub"),
        ({"corpus": [{}]}, "exactly one of path and hub"),
        ({"k": 64, "d_sae": 64}, r"k \(64\) must be smaller than d_sae \(64\)"),
    ):
        with pytest.raises(ValidationError, match=told):
            settings(**fields)


REPORT = DoctorReport(0.8912, 63.4, 3.2, 3.3, 9.1, 0.9831, 0.951, 44.0, 0.0123, 12_345)


@pytest.fixture
def card_config() -> SaeTrainingConfig:
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


def test_the_card_names_site_data_tokens_settings_and_figures(card_config):
    text = sae_card(card_config, "tiny", REPORT, 1000)
    for part in (
        "# SAE of tiny at blocks.1.hook_resid_post",
        "64 features, k = 12",
        "- prose.jsonl.gz (plain)\n- her/texts (chat)",
        "1,000 distinct tokens, 2,000 seen in all (epochs: 2)",
        "3% of the documents were held out",
        "12,345 tokens",
        "| explained variance | 0.8912 |",
        "| loss clean / spliced / ablated | 3.200 / 3.300 / 9.100 |",
        "| features that never fired | 1.23% |",
    ):
        assert part in text, part
    # The card is committed, and where somebody's files lie is nobody's business.
    assert "private" not in text and "falling" not in text
    changes = {"tokens": 600, "k_start": 40, "k_steps": 70, "autocast": False}
    text = sae_card(card_config.model_copy(update=changes), "tiny", REPORT, 1000)
    for part in ("600 distinct tokens", "k falling from 40 over 70 steps", "autocast off"):
        assert part in text, part


def test_what_was_measured_is_what_was_saved(trained, monkeypatch):
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

    def content() -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in trained[0].iterdir() if f.suffix != ".parquet"}

    # Finishing twice changes nothing.
    before = content()
    finish_sae(*trained)
    assert content() == before
    # A share that cannot be computed is null in the metrics.
    unknown = replace(REPORT, ce_score=float("nan"))
    monkeypatch.setattr(module, "doctor", lambda *args, **kwargs: unknown)
    finish_sae(*trained)
    text = (trained[0] / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["ce_score"] is None
