"""The decoded mean difference is the mean difference of reconstructions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.methods import MeanDecodedDelta, MethodInputs
from saesteer.methods.features import encode_pairs
from saesteer.models import Site
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.saes import load_sae

WIDTH = 8


@pytest.fixture(scope="module")
def inputs(mirror_sae) -> MethodInputs:
    sae = load_sae(mirror_sae(d_in=WIDTH, gain=0.9))
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 2, 3, 7])
    sides = [Activations(torch.randn(7, WIDTH, generator=generator), offsets, Site(1))]
    sides.append(Activations(torch.randn(7, WIDTH, generator=generator) - 1, offsets, Site(1)))
    pairs = PairActivations(sides[0], sides[1])
    return MethodInputs(pairs, "tiny", "f", codes=encode_pairs(sae, pairs), sae=sae)


def test_it_is_the_mean_difference_of_the_saes_reconstructions(inputs):
    assert inputs.sae is not None
    means = [
        torch.stack([inputs.sae.reconstruct(side.text(i)).mean(dim=0) for i in range(3)]).mean(0)
        for side in (inputs.activations.positive, inputs.activations.negative)
    ]
    torch.testing.assert_close(MeanDecodedDelta()(inputs).raw, means[0] - means[1])


def test_it_lists_every_feature_that_differs_with_its_mean_difference(inputs):
    vector = MeanDecodedDelta()(inputs)
    weights = np.zeros(2 * WIDTH)
    for feature in vector.sae_features:
        weights[feature.index] = feature.weight
    np.testing.assert_allclose(weights, inputs.codes.mean_delta)
    assert len(vector.sae_features) == np.count_nonzero(inputs.codes.mean_delta)
