"""Every token is encoded on its own, and the codes are pooled as the activations are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.methods.features import encode_pairs
from saesteer.models import Site
from saesteer.models.reading import Activations, PairActivations
from saesteer.saes import load_sae
from saesteer.utils.errors import MismatchError

LENGTHS = {"positive": (3, 1, 5), "negative": (2, 4, 1)}


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=6))


def side(name: str, width: int = 6, dtype=torch.float32) -> Activations:
    counts = torch.tensor(LENGTHS[name])
    generator = torch.Generator().manual_seed(len(name) + int(counts[0]))
    values = torch.randn(int(counts.sum()), width, generator=generator).to(dtype)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return Activations(values, offsets, Site(1))


def pairs(pooling, **rest) -> PairActivations:
    return PairActivations(side("positive", **rest), side("negative", **rest), pooling)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooled_codes_are_what_a_loop_by_hand_gives(pooling, sae):
    given = pairs(pooling)
    codes = encode_pairs(sae, given)
    assert (codes.n_pairs, codes.d_sae) == (3, 12)
    for name in ("positive", "negative"):
        values, start = getattr(given, name).values.numpy(), 0
        for pair, length in enumerate(LENGTHS[name]):
            tokens = values[start : start + length]
            start += length
            kept = tokens[-1:] if pooling == "last" else tokens
            fired = np.concatenate([np.maximum(kept, 0), np.maximum(-kept, 0)], axis=1)
            mean = getattr(codes, name).toarray()[pair]
            share = getattr(codes, f"{name}_frequency").toarray()[pair]
            np.testing.assert_allclose(mean, fired.mean(axis=0), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(share, (fired > 0).mean(axis=0), rtol=1e-12)


def test_the_mean_of_codes_is_not_the_code_of_the_mean(sae):
    codes = encode_pairs(sae, pairs("mean"))
    mean = side("positive").values[:3].mean(dim=0, keepdim=True)
    assert not np.allclose(codes.positive.toarray()[0], sae.encode(mean).numpy()[0], atol=1e-3)


def test_half_precision_activations_are_encoded_in_full(sae):
    codes = encode_pairs(sae, pairs("mean", dtype=torch.bfloat16))
    exact = encode_pairs(sae, pairs("mean"))
    np.testing.assert_allclose(codes.delta.toarray(), exact.delta.toarray(), atol=0.02)


def test_activations_of_another_width_are_refused(sae):
    with pytest.raises(MismatchError, match=r"takes activations of width 6.*\(3, 8\)"):
        encode_pairs(sae, pairs("mean", width=8))
