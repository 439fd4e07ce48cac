"""A vector of chosen features is the sum of their decoder rows."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.methods.chosen_features import vector_of_features
from saesteer.saes.loading import load_sae
from saesteer.steering import to_raw
from saesteer.utils.errors import SaeError, SteeringError


@pytest.fixture(scope="module")
def sae(mirror_sae):
    """Rows are unit vectors: feature k is axis k, feature 32 + k its opposite."""
    return load_sae(mirror_sae())


def test_the_vector_is_the_weighted_sum_of_rows(sae):
    vector = vector_of_features(
        sae, {3: 2.0, 5: -1.0, 7: 0.0}, model="tiny", descriptions={3: "kind"}
    )
    expected = np.zeros(32)
    expected[[3, 5]] = 2.0, -1.0
    assert np.allclose(vector.raw.numpy(), expected, atol=1e-6)
    assert [(f.index, f.weight, f.description) for f in vector.sae_features] == [
        (3, 2.0, "kind"),
        (5, -1.0, None),
    ]
    assert vector.max_act is None and vector.residual_norm is None
    assert vector.sae_fingerprint == sae.fingerprint
    assert vector.model_fingerprint is None


def test_the_vector_belongs_to_the_model_that_the_sae_records(mirror_sae):
    sae = load_sae(mirror_sae(model_fingerprint="f" * 64))
    assert vector_of_features(sae, {3: 1.0}, model="tiny").model_fingerprint == "f" * 64


def test_strength_one_of_max_act_puts_each_feature_at_its_maximum(sae):
    peaks = {3: 4.0, 5: 3.0}
    vector = vector_of_features(sae, {3: 1.0, 5: -1.0}, model="tiny", max_activation=peaks)
    assert to_raw(1.0, "max_act", vector) == pytest.approx(5.0)


def test_what_makes_no_vector_is_refused(sae):
    for weights in ({}, {3: 0.0}, {3: 1.0, 35: 1.0}):
        with pytest.raises(SteeringError):
            vector_of_features(sae, weights, model="tiny")
    for index in (64, -1):
        with pytest.raises(SaeError, match="0 to 63"):
            vector_of_features(sae, {index: 1.0}, model="tiny")
