from __future__ import annotations

import sys

import gguf
import numpy as np
import pytest
import torch

from saesteer.models.loading import plain_model
from saesteer.models.sites import Site
from saesteer.steering import SteeringVector, export_gguf, import_gguf, steer
from saesteer.utils.errors import MismatchError, OutputError, SiteError, SteeringError


def build(layer, raw=(3.0, 4.0, 0.0), **fields):
    return SteeringVector.from_raw(
        torch.tensor(raw), site=f"blocks.{layer}.hook_resid_post", model="tiny", **fields
    )


def write(path, tensors, architecture="controlvector", hint: str | None = "llama"):
    """Write a file as repeng does."""
    writer = gguf.GGUFWriter(path, architecture)
    if hint is not None:
        writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_llama_cpp_finds_what_it_looks_for(tmp_path):
    file = export_gguf(
        [build(2), build(1, (0.0, 0.0, 2.0))], tmp_path / "v.gguf", model_hint="qwen2"
    )
    reader = gguf.GGUFReader(file)

    def value(key):
        field = reader.get_field(key)
        assert field is not None
        return field.contents()

    assert value("general.architecture") == "controlvector"
    assert value("controlvector.model_hint") == "qwen2"
    assert value("controlvector.layer_count") == 2
    found = {t.name: t for t in reader.tensors}
    # llama.cpp adds direction.2 to the output of the block it numbers 2 from 0, as the site does.
    assert list(found) == ["direction.1", "direction.2"]
    assert {t.tensor_type.name for t in found.values()} == {"F32"}
    np.testing.assert_allclose(found["direction.2"].data, [3.0, 4.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["direction.1"].data, [0.0, 0.0, 2.0], rtol=1e-6)


def test_a_strength_becomes_llama_cpps_factor_one_and_vectors_add_up(tmp_path):
    vector = build(3, residual_norm=20.0)
    file = export_gguf(vector, tmp_path / "v.gguf", strength=-0.5, unit="norm")
    np.testing.assert_allclose(gguf.GGUFReader(file).tensors[0].data, [-6.0, -8.0, 0.0], rtol=1e-6)
    # Vectors of one layer are added up.
    file = export_gguf([build(3), build(3, (1.0, 0.0, 1.0))], tmp_path / "v.gguf")
    (tensor,) = gguf.GGUFReader(file).tensors
    np.testing.assert_allclose(tensor.data, [4.0, 4.0, 1.0], rtol=1e-6)

    originals = [build(1, (1.0, -2.0, 2.0)), build(7)]
    back = import_gguf(export_gguf(originals, tmp_path / "v.gguf"))
    assert [v.site for v in back] == [Site(1, "hook_resid_post"), Site(7, "hook_resid_post")]
    for one, other in zip(originals, back, strict=True):
        torch.testing.assert_close(other.direction, one.direction)
        assert other.norm == pytest.approx(one.norm)
        assert other.model == "tiny"


def test_an_imported_vector_claims_nothing_and_steers_in_raw_units_only(llama, tmp_path):
    file = tmp_path / "repeng.gguf"
    write(file, {"direction.5": np.array([0.0, 2.0], np.float32)})
    (vector,) = import_gguf(file)
    assert (vector.residual_norm, vector.max_act, vector.sae_features) == (None, None, ())
    assert vector.read_positions == "unknown"
    assert vector.model_fingerprint is None
    assert vector.model == "llama"
    assert import_gguf(file, model="mine", positions="all")[0].positions == "all"

    write(file, {f"direction.{i}": np.full(32, i, np.float32) for i in (1, 2)})
    vectors = import_gguf(file)
    with steer(llama, vectors, 1.0, "raw"), torch.no_grad():
        plain_model(llama)(torch.tensor([[8, 9]]))
    with pytest.raises(SteeringError, match="residual_norm"), steer(llama, vectors, 0.1):
        pass


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    for site in ("blocks.0.hook_resid_post", "blocks.3.hook_resid_pre"):
        vector = SteeringVector.from_raw([1.0], site=site, model="m")
        with pytest.raises(SteeringError, match=f"is at {site}, which the GGUF"):
            export_gguf(vector, tmp_path / "v.gguf")
    with pytest.raises(SteeringError, match="no vectors"):
        export_gguf([], tmp_path / "v.gguf")
    with pytest.raises(SteeringError, match="2 wide and 'vector' 3"):
        export_gguf([build(1), build(2, (1.0, 1.0))], tmp_path / "v.gguf")
    with pytest.raises(SteeringError, match="residual_norm"):
        export_gguf(build(1), tmp_path / "v.gguf", strength=0.1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        export_gguf(build(1), tmp_path / "file" / "v.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SteeringError, match="pip install gguf"):
        export_gguf(build(1), tmp_path / "v.gguf")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"direction.0": np.ones(3, np.float32)}, "'direction.0'"),
        ({"blk.0.weight": np.ones(3, np.float32)}, "'blk.0.weight'"),
        ({"direction.1": np.ones(3, np.float16)}, "F16"),
        ({"direction.1": np.ones((2, 3), np.float32)}, "1-D"),
        ({"direction.1": np.array([1, np.nan], np.float32)}, "finite"),
        (
            {"direction.1": np.ones(3, np.float32), "direction.2": np.ones(4, np.float32)},
            "differ in width",
        ),
        ({"direction.1": np.zeros(3, np.float32)}, "no direction that is not zero"),
        ({}, "no direction"),
    ],
)
def test_a_file_of_another_layout_is_refused(tmp_path, tensors, message):
    file = tmp_path / "v.gguf"
    write(file, tensors)
    with pytest.raises(SteeringError, match=message) as caught:
        import_gguf(file)
    assert str(file) in str(caught.value)


def test_a_model_a_cut_file_and_a_missing_one_are_refused(tmp_path):
    file = tmp_path / "v.gguf"
    write(file, {"token_embd.weight": np.ones(3, np.float32)}, architecture="llama")
    with pytest.raises(SteeringError, match="'llama', not 'controlvector'"):
        import_gguf(file)
    write(file, {"direction.1": np.ones(64, np.float32)})
    whole = file.read_bytes()
    for content in (b"", whole[:10], whole[:100], whole[:-50], b"not gguf" * 20):
        file.write_bytes(content)
        with pytest.raises(SteeringError, match=r"cut off|no whole GGUF file"):
            import_gguf(file)
    with pytest.raises(SteeringError, match="no such control vector"):
        import_gguf(tmp_path / "none.gguf")


def test_a_vector_of_another_model_is_refused(tmp_path, make_model_folder):
    # 3 blocks, 32 wide; direction.L is block L's output, and blocks count from 0.
    model = make_model_folder("gpt2")
    file = tmp_path / "v.gguf"

    def read(width, *layers):
        write(file, {f"direction.{n}": np.ones(width, np.float32) for n in layers})
        return import_gguf(file, model=str(model))

    assert [vector.site.layer for vector in read(32, 1, 2)] == [1, 2]
    with pytest.raises(SiteError, match=r"direction\.3, blocks\.3.* has blocks 0 to 2; choose"):
        read(32, 1, 3)
    with pytest.raises(MismatchError, match=r"direction\.1 is 33 wide at .* 32; choose"):
        read(33, 1)
    # Trailing directions of zero, as some writers put for every layer, steer nothing.
    zero = {"direction.1": np.ones(32, np.float32), "direction.9": np.zeros(32, np.float32)}
    write(file, zero)
    assert [vector.site.layer for vector in import_gguf(file, model=str(model))] == [1]
    assert import_gguf(file, model="nobody/has-this-one")[0].site.layer == 1
