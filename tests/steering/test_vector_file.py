from __future__ import annotations

import json
import os
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file

from saesteer.steering import SteeredFeature, SteeringVector, load_vector
from saesteer.utils.errors import OutputError, SteeringError


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


def test_a_vector_being_learnt_can_be_saved(tmp_path):
    raw = torch.ones(4, requires_grad=True)
    vector = SteeringVector.from_raw(raw, site="blocks.0.hook_resid_post", model="m")
    assert not SteeringVector.load(vector.save(tmp_path)).direction.requires_grad


def test_a_save_that_fails_leaves_the_old_file_alone_and_names_the_place(
    vector, tmp_path, monkeypatch
):
    file = vector.save(tmp_path)
    before = file.read_bytes()
    with pytest.raises(OutputError, match="cannot be written"):
        vector.save(file / "v.safetensors")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        (vector * 2.0).save(tmp_path)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["vector.safetensors"]


def test_provenance_that_is_not_json_is_refused_before_writing(vector, tmp_path):
    for bad in (float("nan"), {1, 2}, torch.ones(1)):
        with pytest.raises(SteeringError, match="provenance"):
            replace(vector, provenance={"x": bad}).save(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 100, -3])
def test_a_cut_file_is_refused(vector, tmp_path, keep):
    file = vector.save(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SteeringError, match="cut off"):
        SteeringVector.load(file)


def test_a_missing_file_and_another_kind_of_file_are_refused(tmp_path):
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
        ({"norm": "long"}, "field norm"),
        ({"norm": "DROP"}, "field norm"),
        ({"colour": "red"}, "field colour"),
        ({"features": [{"index": "x", "weight": 1, "cluster": None, "description": None}]}, "ind"),
        ({"site": "layer ten"}, "site 'layer ten'"),
        ({"norm": -1.0}, "norm is -1.0"),
        ({"direction": torch.ones(8)}, "not 1"),
        ({"direction": torch.full((8,), float("nan"))}, "NaN"),
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
