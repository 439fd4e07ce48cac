"""Every token is encoded on its own, and the codes are pooled as the activations are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from saesteer.methods.features import PairCodes, encode_pairs
from saesteer.models import Site
from saesteer.models.reading import Activations, PairActivations
from saesteer.saes import load_sae
from saesteer.utils.errors import DataError

POSITIVE = np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 4.0]])
NEGATIVE = np.array([[0.5, 3.0, 0.0], [0.0, 0.0, 4.0]])
LENGTHS = {"positive": (3, 1, 5), "negative": (2, 4, 1)}


def test_delta_is_positive_minus_negative_and_stays_sparse():
    codes = PairCodes(csr_matrix(POSITIVE), NEGATIVE)
    assert isinstance(codes.delta, csr_matrix)
    np.testing.assert_array_equal(codes.delta.toarray(), POSITIVE - NEGATIVE)
    np.testing.assert_allclose(codes.mean_delta, (POSITIVE - NEGATIVE).mean(axis=0))
    np.testing.assert_allclose(codes.mean_size, np.abs(POSITIVE - NEGATIVE).mean(axis=0))
    np.testing.assert_array_equal(codes.firing_positive, [0.5, 0.5, 1.0])
    np.testing.assert_array_equal(codes.firing, [0.5, 0.5, 0.75])
    both = np.vstack([POSITIVE, NEGATIVE])
    np.testing.assert_array_equal(codes.stacked([2, 0]), both[:, [2, 0]])
    np.testing.assert_array_equal(codes.columns([2, 0]).stacked(), both[:, [2, 0]])
    broken = NEGATIVE.copy()
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match=r"negative: the activations of pair 1 "):
        PairCodes(POSITIVE, broken)


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=6))


def side(name: str) -> Activations:
    counts = torch.tensor(LENGTHS[name])
    generator = torch.Generator().manual_seed(len(name) + int(counts[0]))
    values = torch.randn(int(counts.sum()), 6, generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return Activations(values, offsets, Site(1))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooled_codes_are_what_a_loop_by_hand_gives(pooling, sae):
    given = PairActivations(side("positive"), side("negative"), pooling)
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
            np.testing.assert_allclose(mean, fired.mean(axis=0), rtol=1e-6, atol=1e-7)
