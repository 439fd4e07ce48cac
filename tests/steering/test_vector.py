from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models.sites import Site
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.errors import SteeringError

SITE = "blocks.1.hook_resid_post"


def build(raw, **fields):
    return SteeringVector.from_raw(raw, **({"site": SITE, "model": "m"} | fields))


def test_a_raw_vector_is_normalised_and_its_length_kept():
    vector = build([3.0, 4.0, 0.0])
    np.testing.assert_allclose(vector.direction.numpy(), [0.6, 0.8, 0.0], rtol=1e-6)
    assert vector.direction.dtype == torch.float32
    assert vector.norm == 5.0
    np.testing.assert_allclose(vector.raw.numpy(), [3.0, 4.0, 0.0], rtol=1e-6)
    assert vector.site == Site(1, "hook_resid_post")
    assert vector.positions == "from_last_prompt_token"


def test_lengths_near_the_ends_of_float32_still_give_a_unit_direction():
    for scale in (1e-38, 1e38):
        vector = build(torch.full((64,), scale))
        assert float(vector.direction.norm()) == pytest.approx(1.0, abs=1e-6)
        assert vector.norm == pytest.approx(8 * scale, rel=1e-6)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.zeros(4), "is zero"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, float("inf")]), "infinite"),
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (torch.ones(0), "shape"),
        (1.0, "shape"),
        (["a", "b"], "cannot be read as numbers"),
    ],
)
def test_a_raw_vector_without_a_direction_is_refused(raw, message):
    with pytest.raises(SteeringError, match=message):
        build(raw)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"residual_norm": 0.0}, "residual_norm"),
        ({"residual_norm": float("nan")}, "not finite"),
        ({"max_act": -1.0}, "max_act"),
        ({"positions": "last"}, "positions 'last' are unknown"),
        ({"features": [SteeredFeature(1, float("nan"))]}, "feature 1"),
    ],
)
def test_fields_that_cannot_be_are_refused(fields, message):
    with pytest.raises(SteeringError, match=message):
        build([1.0], **fields)


def test_a_direction_that_is_not_unit_points_to_from_raw():
    with pytest.raises(SteeringError, match="from_raw"):
        SteeringVector(torch.tensor([1.0, 1.0]), site=Site(0), norm=1.0, model="m")


def test_gradients_reach_the_raw_vector():
    raw = torch.tensor([3.0, 4.0], requires_grad=True)
    build(raw).direction[0].backward()
    assert raw.grad is not None
    # d(x/|x|)_0/dx = (e_0 - x_0 x/|x|^2)/|x|
    np.testing.assert_allclose(raw.grad.numpy(), [(1 - 9 / 25) / 5, (-12 / 25) / 5], rtol=1e-5)


def test_scaling_goes_through_norm_weights_and_maximum():
    vector = build([3.0, 4.0], max_act=2.0, features=[SteeredFeature(5, 0.5)], residual_norm=7.0)
    for scaled in (vector * -2.0, -2.0 * vector, vector.scaled(np.float64(-2.0))):
        np.testing.assert_allclose(scaled.raw.numpy(), [-6.0, -8.0], rtol=1e-6)
        assert scaled.norm == 10.0
        assert scaled.max_act == 4.0
        assert scaled.sae_features == (SteeredFeature(5, -1.0),)
        assert scaled.residual_norm == 7.0
    negated = -vector
    assert torch.equal(negated.direction, -vector.direction)
    assert negated.norm == vector.norm


@pytest.mark.parametrize("factor", [0.0, float("nan"), "2"])
def test_scaling_by_nothing_is_refused(factor):
    with pytest.raises(SteeringError):
        build([1.0]).scaled(factor)


def test_sums_add_natural_vectors_and_weights_by_feature():
    a = build([3.0, 0.0], features=[SteeredFeature(1, 0.5, 0, "a"), SteeredFeature(2, 1.0)])
    b = build(
        [0.0, 8.0],
        features=[SteeredFeature(2, -1.0), SteeredFeature(1, 0.25), SteeredFeature(9, 2.0, 4)],
        residual_norm=20.0,
        method="other",
        name="b",
    )
    total = a + b
    np.testing.assert_allclose(total.raw.numpy(), [3.0, 8.0], rtol=1e-6)
    assert total.norm == pytest.approx(math.hypot(3, 8))
    assert [(f.index, f.weight) for f in total.sae_features] == [(1, 0.75), (9, 2.0)]
    assert total.sae_features[0].description == "a"
    assert total.residual_norm == 20.0
    assert total.max_act is None
    assert total.name == "vector + b"
    parents: Any = total.provenance["sum_of"]
    assert [p["name"] for p in parents] == ["vector", "b"]
    np.testing.assert_allclose((a - b).raw.numpy(), [3.0, -8.0], rtol=1e-6)


def test_a_vector_less_itself_has_no_direction():
    with pytest.raises(SteeringError, match="zero"):
        _ = build([1.0, 2.0]) - build([1.0, 2.0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"site": "blocks.2.hook_resid_post"}, "different sites"),
        ({"model": "n"}, "different models"),
        ({"positions": "all"}, "different writing positions"),
        ({"features": [SteeredFeature(1, 1.0)], "sae": "other"}, "different SAEs"),
    ],
)
def test_vectors_that_do_not_belong_together_do_not_add(fields, message):
    a = build([1.0, 2.0], features=[SteeredFeature(1, 1.0)], sae="one")
    with pytest.raises(SteeringError, match=message):
        _ = a + build([1.0, 2.0], **fields)


def test_one_set_of_weights_under_two_names_is_one_model():
    a = build([1.0, 2.0], model="hub/name", model_fingerprint="f")
    b = build([1.0, 2.0], model="/a/folder", model_fingerprint="f")
    assert (a + b).norm == pytest.approx(2 * math.sqrt(5))
    with pytest.raises(SteeringError, match="different models"):
        _ = a + replace(b, model_fingerprint="g", model="hub/name")
    with pytest.raises(SteeringError, match="different models"):
        _ = a + build([1.0, 2.0, 3.0], model="hub/name", model_fingerprint="f")


def test_features_are_a_table_with_their_pages():
    features = [SteeredFeature(3, 0.5, 2, "cats"), SteeredFeature(70, -1.25)]
    place = {"neuronpedia_id": "gpt2-small/6-res-jb"}
    table = build([1.0, 2.0], features=features, provenance=place).features
    assert list(table.columns) == ["index", "weight", "cluster", "label", "url"]
    assert table["index"].tolist() == [3, 70] and table["weight"].tolist() == [0.5, -1.25]
    assert table["cluster"][0] == 2 and table["cluster"].isna().tolist() == [False, True]
    assert table["label"].tolist() == ["cats", None]
    assert table["url"][1].endswith("gpt2-small/6-res-jb/70")
    assert build([1.0, 2.0], features=features).features["url"].tolist() == [None, None]
    dense = build([1.0, 2.0]).features
    assert dense.empty and list(dense.columns) == list(table.columns)
