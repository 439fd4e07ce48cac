"""Vectors: their arithmetic, their strengths and their file."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saesteer.models.sites import Site
from saesteer.steering import SteeredFeature, SteeringVector, load_vector, parse, to_raw
from saesteer.steering.strength import check_strength, check_strengths, check_unit
from saesteer.utils.errors import SteeringError

SITE = "blocks.1.hook_resid_post"


def build(raw, **fields):
    given: dict[str, Any] = {"site": SITE, "model": "m", **fields}
    return SteeringVector.from_raw(raw, **given)


def test_a_raw_vector_is_normalised_and_its_length_kept():
    vector = build([3.0, 4.0, 0.0])
    np.testing.assert_allclose(vector.direction.numpy(), [0.6, 0.8, 0.0], rtol=1e-6)
    assert vector.direction.dtype == torch.float32
    assert vector.norm == 5.0
    np.testing.assert_allclose(vector.raw.numpy(), [3.0, 4.0, 0.0], rtol=1e-6)
    assert vector.site == Site(1, "hook_resid_post")
    assert vector.positions == "from_last_prompt_token"

    # Lengths near the ends of float32 still give a unit direction.
    for scale in (1e-38, 1e38):
        vector = build(torch.full((64,), scale))
        assert float(vector.direction.norm()) == pytest.approx(1.0, abs=1e-6)
        assert vector.norm == pytest.approx(8 * scale, rel=1e-6)


@pytest.mark.parametrize(
    ("raw", "fields", "message"),
    [
        (torch.zeros(4), {}, "is zero"),
        (torch.tensor([1.0, float("nan")]), {}, "NaN"),
        (torch.ones(2, 2), {}, r"shape \(2, 2\)"),
        (1.0, {}, "shape"),
        (["a", "b"], {}, "cannot be read as numbers"),
        ([1.0], {"residual_norm": 0.0}, "residual_norm"),
        ([1.0], {"residual_norm": float("nan")}, "not finite"),
        ([1.0], {"max_act": -1.0}, "max_act"),
        ([1.0], {"positions": "last"}, "positions 'last' are unknown"),
        ([1.0], {"features": [SteeredFeature(1, float("nan"))]}, "feature 1"),
    ],
)
def test_what_makes_no_vector_is_refused(raw, fields, message):
    with pytest.raises(SteeringError, match=message):
        build(raw, **fields)
    with pytest.raises(SteeringError, match="from_raw"):
        SteeringVector(torch.tensor([1.0, 1.0]), site=Site(0), norm=1.0, model="m")


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
    factor: Any
    for factor in (0.0, float("nan"), "2"):
        with pytest.raises(SteeringError):
            vector.scaled(factor)


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
    # One set of weights under two names is one model.
    a = build([1.0, 2.0], model="hub/name", model_fingerprint="f")
    b = build([1.0, 2.0], model="/a/folder", model_fingerprint="f")
    assert (a + b).norm == pytest.approx(2 * math.sqrt(5))
    with pytest.raises(SteeringError, match="different models"):
        _ = a + replace(b, model_fingerprint="g", model="hub/name")


def test_features_are_a_table_with_their_pages():
    features = [SteeredFeature(3, 0.5, 2, "cats"), SteeredFeature(70, -1.25)]
    place = {"neuronpedia_id": "gpt2-small/6-res-jb"}
    table: Any = build([1.0, 2.0], features=features, provenance=place).features
    assert list(table.columns) == ["index", "weight", "cluster", "label", "url"]
    assert table["index"].tolist() == [3, 70] and table["weight"].tolist() == [0.5, -1.25]
    assert table["cluster"][0] == 2 and table["cluster"].isna().tolist() == [False, True]
    assert table["label"].tolist() == ["cats", None]
    assert table["url"][1].endswith("gpt2-small/6-res-jb/70")
    assert build([1.0, 2.0], features=features).features["url"].tolist() == [None, None]
    dense = build([1.0, 2.0]).features
    assert dense.empty and list(dense.columns) == list(table.columns)


def test_each_unit_is_a_multiple_of_its_own_measure_and_a_missing_one_names_the_way_out():
    measured = build([3.0, 4.0], residual_norm=50.0, max_act=8.0)
    assert to_raw(0.2, "norm", measured) == pytest.approx(10.0)
    assert to_raw(-2.5, "raw", measured) == -2.5
    assert to_raw(-0.5, "max_act", measured) == pytest.approx(-4.0)

    bare = build([1.0], name="bare")
    unit: Any
    bad: Any
    for unit, field, way in (("norm", "residual_norm", "raw"), ("max_act", "max_act", "norm")):
        says = f"'bare' does not carry; use unit '{way}'.*{field}="
        with pytest.raises(SteeringError, match=says):
            to_raw(1.0, unit, bare)
    for bad in (float("nan"), -float("inf"), "0.2", None, True, [0.1], torch.ones(2)):
        with pytest.raises(SteeringError, match="strength"):
            to_raw(bad, "raw", bare)


def test_strengths_are_read_as_numbers_of_any_kind_and_as_a_person_types():
    assert check_strength(np.float32(0.5)) == 0.5
    assert check_strengths(np.array([0.5, 1.0])) == (0.5, 1.0)
    assert check_strengths(torch.tensor(0.5)) == (0.5,)
    assert check_strengths(range(2)) == (0.0, 1.0)

    with pytest.raises(SteeringError, match="'percent' is unknown; use one of norm, raw, max_act"):
        check_unit("percent")
    with pytest.raises(SteeringError, match="empty"):
        check_strengths([])
    with pytest.raises(SteeringError, match="not finite"):
        check_strengths([0.1, float("nan")])

    assert parse("-0.2") == -0.2
    assert parse(" 1e-1 ") == 0.1
    for text in ("much", "", "nan", "inf", "0,2"):
        with pytest.raises(SteeringError, match="strength"):
            parse(text)


@pytest.fixture
def vector():
    return SteeringVector.from_raw(
        torch.arange(1.0, 9.0),
        site="blocks.10.hook_resid_post",
        model="smollm2",
        model_fingerprint="abc",
        residual_norm=12.5,
        max_act=3.25,
        features=(SteeredFeature(3, 0.5, 0, "kättchen"), SteeredFeature(70, -1.25)),
        positions="all",
        read_positions="statement",
        sae="bundled",
        sae_fingerprint="def",
        method="clustered_sae",
        name="agreeableness",
        provenance={"seed": 1, "pairs": ["a", None], "fit": {"r2": 0.5}},
    )


def same(a: SteeringVector, b: SteeringVector) -> bool:
    others = [f.name for f in fields(a) if f.name != "direction"]
    return torch.equal(a.direction, b.direction) and all(
        getattr(a, n) == getattr(b, n) for n in others
    )


def test_a_vector_comes_back_whole_from_a_file_and_from_a_folder(vector, tmp_path):
    file = vector.save(tmp_path / "deep" / "v.safetensors")
    assert same(load_vector(file), vector)
    assert same(SteeringVector.load(file), vector)
    inside = vector.save(tmp_path / "run")
    assert inside == tmp_path / "run" / "vector.safetensors"
    assert same(SteeringVector.load(tmp_path / "run"), vector)
    assert same(SteeringVector.load(str(inside)), vector)

    # One that is being learnt can be saved too.
    learnt = build(torch.ones(4, requires_grad=True))
    assert not SteeringVector.load(learnt.save(tmp_path)).direction.requires_grad


def test_what_cannot_be_written_or_read_is_refused(vector, tmp_path):
    for bad in (float("nan"), {1, 2}, torch.ones(1)):
        with pytest.raises(SteeringError, match="provenance"):
            replace(vector, provenance={"x": bad}).save(tmp_path)
    assert os.listdir(tmp_path) == []
    cut = vector.save(tmp_path / "cut.safetensors")
    whole = cut.read_bytes()
    for keep in (0, 100, -3):
        cut.write_bytes(whole[:keep])
        with pytest.raises(SteeringError, match="cut off"):
            SteeringVector.load(cut)
    for path in (tmp_path / "none.safetensors", tmp_path, tmp_path / "none"):
        with pytest.raises(SteeringError, match="no such steering vector"):
            load_vector(path)
    file = tmp_path / "x.safetensors"
    file.write_text("hello " * 100)
    with pytest.raises(SteeringError, match="cannot be read as safetensors"):
        SteeringVector.load(file)
    save_file({"direction": torch.ones(3)}, file)
    with pytest.raises(SteeringError, match="not a saesteer steering vector"):
        SteeringVector.load(file)


def rewrite(vector, file, *, direction=None, version="1", **changes):
    from safetensors import safe_open

    vector.save(file)
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["vector"])
    header.update(changes)
    header = {k: v for k, v in header.items() if v != "DROP"}
    metadata = {
        "format": "saesteer.steering_vector",
        "version": version,
        "vector": json.dumps(header),
    }
    tensor = vector.direction if direction is None else direction
    save_file({"direction": tensor}, file, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2"}, "format version is '2'"),
        ({"norm": "DROP"}, "field norm"),
        ({"colour": "red"}, "field colour"),
        ({"features": [{"index": "x", "weight": 1, "cluster": None, "description": None}]}, "ind"),
        ({"site": "layer ten"}, "site 'layer ten'"),
        ({"norm": -1.0}, "norm is -1.0"),
        ({"direction": torch.ones(8)}, "not 1"),
        ({"direction": torch.ones(2, 4)}, "shape"),
    ],
)
def test_a_file_with_a_wrong_field_names_file_and_field(vector, tmp_path, changes, message):
    file = tmp_path / "v.safetensors"
    rewrite(vector, file, **changes)
    with pytest.raises(SteeringError, match=message) as caught:
        SteeringVector.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
