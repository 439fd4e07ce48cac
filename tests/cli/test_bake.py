"""`saesteer vector bake`, and `saesteer doctor` on what it wrote."""

from __future__ import annotations

import json

import pytest
import torch

from saesteer.steering import SteeringVector


@pytest.fixture
def vector(tiny_model_folder, tmp_path, monkeypatch):
    """The file of a vector of the tiny Llama."""
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    raw = torch.randn(32, generator=torch.Generator().manual_seed(0))
    made = SteeringVector.from_raw(
        raw,
        site="blocks.1.hook_resid_post",
        model=str(tiny_model_folder("llama")),
        residual_norm=5.0,
        name="kind",
    )
    return made.save(tmp_path / "kind.safetensors")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The cat sat on the mat.\n\nWhat do you think about the weather?")
    return file


@pytest.mark.parametrize(("into", "most"), [("float32", 1e-4), ("bfloat16", 0.02), ("gguf", 1e-4)])
def test_a_model_is_baked_and_the_doctor_finds_it_to_be_the_hooks(
    into, most, saesteer, refused, vector, tiny_gguf, text, tmp_path
):
    target = tmp_path / "new" / "baked"
    how = ["--gguf", tiny_gguf] if into == "gguf" else ["--dtype", into]
    answer = saesteer("vector", "bake", vector, target, "--strength", "-0.3", *how)
    assert answer.code == 0, answer
    assert answer.out == (
        f"wrote {target} at strength -0.3 (norm); try: saesteer doctor {target}\n"
    )
    shown = " ".join(saesteer("doctor", target, "--text", text).out.split())
    assert "kind at blocks.1.hook_resid_post, strength -0.3 (norm)" in shown
    assert "same likeliest token" in shown
    found = json.loads(saesteer("doctor", target, "--text", text, "--json").out)
    assert found["difference"] < most * found["spread"]
    # Another strength than the one that is baked.
    record = target / "steering" / "bake.json"
    changed = json.loads(record.read_text())
    changed["vectors"][0]["length"] *= 1.1
    record.write_text(json.dumps(changed))
    assert "differ from the hook's" in refused("doctor", target, "--text", text)


def test_a_kl_is_what_it_costs(saesteer, vector, roomy_folder, tmp_path):
    target = tmp_path / "baked"
    answer = saesteer("vector", "bake", vector, target, "--kl", "0.2", "--model", roomy_folder)
    assert answer.code == 0, answer
    record = json.loads((target / "steering" / "bake.json").read_text())
    assert record["kl"] == pytest.approx(0.2, rel=0.03)
    assert f"at strength {record['vectors'][0]['strength']:.4g} (norm)" in answer.out


def test_what_cannot_be_baked_is_refused_before_a_model_is_loaded(
    refused, no_loading, vector, tiny_model_folder, tmp_path
):
    new = tmp_path / "new"

    def told(*rest, target=new):
        return refused("vector", "bake", vector, target, *rest)

    assert "give --strength 0.2 or --kl 0.3" in told()
    assert "give --strength 0.2 or --kl 0.3" in told("--strength", "0.1", "--kl", "0.3")
    assert "above 0" in told("--kl", "-1")
    assert "max_act" in told("--strength", "1", "--unit", "max_act")
    assert "there already" in told("--strength", "0.1", target=tmp_path)
    gguf = ("--gguf", tiny_model_folder("llama"))
    assert "is no GGUF file" in told("--strength", "0.1", *gguf)
    assert "2 strengths and 1 vectors" in told("--strength", "0.1", "--strength", "0.2", *gguf)
    assert "holds no steering/bake.json" in refused("doctor", tmp_path)
    assert not new.exists()
