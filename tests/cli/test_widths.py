"""Every command that brings a model and an SAE or a vector together compares their widths first."""

from __future__ import annotations

import json

import pytest

from saesteer.models import Site
from saesteer.steering import SteeringVector


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["run", "compare", "patch run", "probe train", "doctor"])
def test_an_sae_of_another_width_is_refused_before_a_gguf_file_is_converted(
    command, refused, tiny_gguf, tiny_settings, mirror_sae, tmp_path, monkeypatch
):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    wide = mirror_sae(d_in=48)
    if command == "doctor":
        said = refused("doctor", "--model", tiny_gguf, "--sae", wide)
    else:
        common = tiny_settings("llama", sae=wide)
        own = {
            "run": common,
            "compare": {
                "personas": [common["pairs"]["source"]],
                "methods": ["attributed_sae", "difference_in_means"],
            },
            "patch run": {"pairs": {"source": "capitals"}, "components": ["resid_pre"]},
            "probe train": {"data": {"source": "sentiment"}, "reading": {"sae": str(wide)}},
        }[command]
        named = {"name": "tiny", "model": {"name": str(tiny_gguf)}, "folder": str(tmp_path / "o")}
        settings = own | named | ({} if command == "probe train" else {"sae": str(wide)})
        file = tmp_path / "settings.yaml"
        file.write_text(json.dumps(settings), encoding="utf-8")
        said = refused(*command.split(), file)
    assert f"SAE {wide} is 48 wide at blocks.1.hook_resid_post and model {tiny_gguf} 32" in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("no_loading")
def test_a_vector_of_another_width_is_refused_before_a_gguf_file_is_converted(
    refused, tiny_gguf, tmp_path, monkeypatch
):
    import torch

    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    vector = SteeringVector.from_raw(
        torch.ones(48), site=Site(1), model=str(tiny_gguf), positions="all", residual_norm=1.0
    )
    file = vector.save(tmp_path / "vector.safetensors")
    said = refused("generate", "Hello", "--vector", file, "--strength", "1")
    assert "is 48 wide at blocks.1.hook_resid_post and model" in said
    assert not (tmp_path / "cache").exists()
