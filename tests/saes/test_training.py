from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saesteer.saes.corpus import CorpusSource
from saesteer.saes.harvest import Harvest
from saesteer.saes.loading import load_sae
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


def test_trained_sae_explains_what_it_has_not_seen(harvested, tmp_path):
    folder = train(harvested, tmp_path / "run")
    sae = load_sae(folder)
    x = sparse_mixtures(2000, seed=77)
    assert explained_variance(x, sae.reconstruct(x)) > 0.5
    assert float((sae.encode(x) != 0).sum(dim=1).float().mean()) <= 4
    assert (sae.d_in, sae.d_sae, sae.architecture) == (16, 48, "topk")
    assert str(sae.site) == SITE
    assert sae.prepend_bos is True


def test_the_scale_is_folded_into_the_weights(harvested, tmp_path):
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = load_sae(train(harvested, tmp_path / "run"))
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
    x = sparse_mixtures(200, seed=77)
    with torch.no_grad():
        torch.testing.assert_close(sae.reconstruct(x), inside(x / scale) * scale)
        torch.testing.assert_close(sae.encode(x), inside.encode(x / scale) * scale)


@pytest.mark.parametrize("steps", [3, 21])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    harvested, tmp_path, monkeypatch, steps
):
    monkeypatch.setattr(MODULE, "CHECKPOINT_EVERY_SHARDS", 2)
    whole = train(harvested, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(harvested, tmp_path / "cut", progress=Breaking(steps))
    assert (tmp_path / "cut" / "checkpoint.safetensors").is_file() == (steps > 16)
    assert not (tmp_path / "cut" / "sae").exists()
    resumed = train(harvested, tmp_path / "cut")
    expected = load_file(whole / "sae_weights.safetensors")
    found = load_file(resumed / "sae_weights.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_more_features_fire_at_first_and_k_at_the_end_also_after_a_break(
    harvested, tmp_path, monkeypatch
):
    monkeypatch.setattr(MODULE, "CHECKPOINT_EVERY_SHARDS", 1)
    falling = {"k_start": 24, "k_steps": 60}
    whole = train(harvested, tmp_path / "whole", **falling)
    sae = load_sae(whole)
    x = sparse_mixtures(500, seed=77)
    assert int((sae.encode(x) != 0).sum(dim=1).max()) <= 4
    assert explained_variance(x, sae.reconstruct(x)) > 0.5
    with pytest.raises(KeyboardInterrupt):
        train(harvested, tmp_path / "cut", progress=Breaking(30), **falling)
    resumed = load_file(train(harvested, tmp_path / "cut", **falling) / "sae_weights.safetensors")
    for name, tensor in load_file(whole / "sae_weights.safetensors").items():
        assert torch.equal(resumed[name], tensor), name
    with pytest.raises(SaeError, match=r"fall to k over 500 steps and the training has 120"):
        train(harvested, tmp_path / "long", k_start=24, k_steps=500)


def test_a_finished_run_is_not_trained_again(harvested, tmp_path, monkeypatch):
    first = train(harvested, tmp_path / "run")
    before = load_file(first / "sae_weights.safetensors")
    monkeypatch.setattr(MODULE._Training, "train", None)
    again = load_file(train(harvested, tmp_path / "run") / "sae_weights.safetensors")
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_a_training_that_diverges_is_stopped_with_the_way_out(harvested, tmp_path):
    with pytest.raises(SaeError, match=r"diverged at step \d+ .*lower learning_rate"):
        train(harvested, tmp_path / "run", learning_rate=1e38, warmup_steps=0)
    assert not (tmp_path / "run" / "sae").exists()


@pytest.mark.parametrize("bad", [math.nan])
def test_activations_that_overflowed_are_named_as_such(write_shards, tmp_path, bad):
    values = sparse_mixtures(520, seed=0)
    values[100, 3] = bad
    with pytest.raises(SaeError, match=r"hold NaN or infinity.*float32"):
        train(write_shards([sparse_mixtures(520, seed=1), values]), tmp_path / "run")


@pytest.mark.parametrize("lengths", [[40, 40], []])
def test_too_few_tokens_for_one_batch_are_refused(write_shards, tmp_path, lengths):
    shards = write_shards([sparse_mixtures(520, seed=0)[:n] for n in lengths])
    text = rf"the {sum(lengths)} tokens in .* do not fill one batch of 64 .*lower batch"
    with pytest.raises(SaeError, match=text):
        train(shards, tmp_path / "run")


def test_a_checkpoint_of_other_settings_is_not_continued(harvested, tmp_path):
    train(harvested, tmp_path / "run", epochs=1)
    with pytest.raises(SaeError, match=r"d_sae and k of \(48, 4\).*\(48, 6\).*another folder"):
        train(harvested, tmp_path / "run", epochs=1, k=6)


def test_a_damaged_checkpoint_is_one_sentence(harvested, tmp_path):
    train(harvested, tmp_path / "run", epochs=1)
    file = tmp_path / "run" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SaeError, match=r"checkpoint .* cannot be read .*delete it"):
        train(harvested, tmp_path / "run", epochs=1)


@pytest.mark.parametrize("limit", [16_000])
def test_a_full_disk_is_one_sentence_and_leaves_no_draft(harvested, tmp_path, limit):
    resource = pytest.importorskip("resource")
    train(harvested, tmp_path / "run", epochs=1)
    kept = sorted(os.listdir(tmp_path / "run"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit < 10_000:  # too small for the weights; the other is too small for a checkpoint alone
        folder, text = tmp_path / "run", r"sae cannot be written"
    else:
        folder, text = tmp_path / "new", r"checkpoint\S* cannot be written"
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match=text):
            train(harvested, folder, epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(os.listdir(folder)) == (kept if folder.name == "run" else [])
    load_sae(tmp_path / "run" / "sae")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"learning_rat": 1e-3}, "learning_rat"),
        ({"corpus": []}, "corpus"),
        ({"corpus": [{"path": "a.jsonl", "pth": "b"}]}, "pth"),
        ({"corpus": [{"path": "a.jsonl", "style": "poem"}]}, "style"),
        ({"corpus": [{"path": "a.jsonl", "limit": 0}]}, "limit"),
        ({"held_out": 0}, "held_out"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"site": None}, "site"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields, field):
    with pytest.raises(ValidationError) as caught:
        settings(**fields)
    assert any(field in error["loc"] for error in caught.value.errors())


@pytest.mark.parametrize(("k", "d_sae"), [(64, 64)])
def test_k_has_to_be_smaller_than_d_sae(k, d_sae):
    with pytest.raises(ValidationError, match=rf"k \({k}\) must be smaller than d_sae \({d_sae}\)"):
        settings(k=k, d_sae=d_sae)
    assert settings(k=d_sae - 1, d_sae=d_sae).k == d_sae - 1


@pytest.mark.parametrize("place", [{}, {"path": "a.jsonl", "hub": "her/texts"}])
def test_a_source_is_in_exactly_one_place(place):
    with pytest.raises(ValidationError, match="exactly one of path and hub"):
        CorpusSource(**place)


def test_the_training_site_is_always_among_those_read():
    other = "blocks.8.hook_resid_post"
    assert settings().all_sites == [SITE]
    assert settings(harvest_sites=[other, SITE, other]).all_sites == sorted([SITE, other])
