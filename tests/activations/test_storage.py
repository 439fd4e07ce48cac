"""Pair activations on disk."""

from __future__ import annotations

import os

import pytest
import torch

from saesteer.models import Site
from saesteer.models.activation_files import load_pair_activations, save_pair_activations
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.utils.errors import OutputError


@pytest.fixture
def pairs():
    values = torch.randn(9, 4, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    both = Activations(values, torch.tensor([0, 2, 3, 6, 9]), Site(7, "attn.hook_z"))
    return PairActivations(both.slice(0, 2), both.slice(2, 4), "last")


def test_what_is_saved_is_read_back(pairs, tmp_path):
    save_pair_activations(pairs, tmp_path / "pairs.safetensors")
    back = load_pair_activations(tmp_path / "pairs.safetensors")
    assert os.listdir(tmp_path) == ["pairs.safetensors"]
    assert (back.site, back.pooling) == (pairs.site, "last")
    assert torch.equal(back.deltas, pairs.deltas)
    for ours, theirs in ((pairs.positive, back.positive), (pairs.negative, back.negative)):
        assert torch.equal(ours.values, theirs.values)
        assert torch.equal(ours.offsets, theirs.offsets)
        assert theirs.values.dtype == torch.bfloat16


def test_a_missing_or_damaged_file_is_a_sentence(pairs, tmp_path):
    from safetensors.torch import save_file

    whole = tmp_path / "whole.safetensors"
    save_pair_activations(pairs, whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("these are no tensors")
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "bare.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors", metadata={"site": "blocks.1.x"})
    for name in ("missing", "cut", "empty", "text", "folder", "bare", "other"):
        with pytest.raises(OutputError, match=rf"{name}\.safetensors cannot be read .*delete it"):
            load_pair_activations(tmp_path / f"{name}.safetensors")
