"""What is written for vLLM's two packages, read by the rules of their own loaders."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.steering.vllm_vectors import export_live
from saesteer.utils.errors import OutputError, SteeringError


def test_hotwire_finds_a_tensor_and_requests_name_it(make_vector, tmp_path):
    vector = make_vector(name="kind: v2", site="blocks.2.hook_resid_pre")
    folder = export_live(vector, tmp_path / "new", "hotwire", [-0.2, 0.0, 0.2])
    # As it loads them: the file's name is the id, and a tensor of one dimension is for any layer.
    loaded = torch.load(folder / "kind-v2.pt", map_location="cpu", weights_only=True)
    torch.testing.assert_close(loaded, vector.direction / vector.direction.norm())
    asked = json.loads((folder / "requests.json").read_text())
    assert [one["strength"] for one in asked] == [-0.2, 0.0, 0.2]
    assert "vllm_xargs" not in asked[1]["body"]
    (spec,) = json.loads(asked[2]["body"]["vllm_xargs"]["hotwire"])
    # What enters block 2 is what leaves block 1; a fifth of a residual norm of 10.
    assert spec == {"id": "kind-v2", "layer": 1, "scale": 2.0, "decode_only": True}
    assert asked[0]["body"]["cache_salt"] != asked[2]["body"]["cache_salt"]
    assert asked[0]["body"]["messages"][0]["role"] == "user"
    everywhere = export_live(make_vector(positions="all"), tmp_path / "all", "hotwire", 0.2)
    body = json.loads((everywhere / "requests.json").read_text())[0]["body"]
    assert "decode_only" not in body["vllm_xargs"]["hotwire"]


def test_vllm_lens_is_given_the_vector_itself(make_vector, tmp_path):
    # The name that is hardest to keep apart, and a model that vLLM knows by another name.
    vector = replace(make_vector(name="requests"), model="smollm2")
    folder = export_live(vector, tmp_path / "new", "vllm-lens", 0.2)
    alone = json.loads((folder / "requests.vector.json").read_text())
    body = json.loads((folder / "requests.json").read_text())[0]["body"]
    assert body["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    (asked,) = json.loads(body["vllm_xargs"]["apply_steering_vectors"])
    assert (asked["scale"], asked["norm_match"], asked["position_indices"]) == (2.0, False, None)
    for one in (alone, asked):
        told = one["activations"]
        data = np.frombuffer(base64.b64decode(told["data"]), np.dtype(told["dtype"]))
        read = torch.from_numpy(data.copy()).reshape(told["shape"])
        torch.testing.assert_close(read[0], vector.direction / vector.direction.norm())
        assert (one["layer_indices"], told["original_dtype"]) == ([1], "torch.float32")


def test_what_cannot_be_exported_is_said_before_anything_is_written(make_vector, tmp_path):
    with pytest.raises(SteeringError, match="no block's output"):
        export_live(make_vector(site="blocks.0.hook_resid_pre"), tmp_path / "new", "hotwire", 0.2)
    with pytest.raises(OutputError, match="there already"):
        export_live(make_vector(), tmp_path, "vllm-lens", 0.2)
    assert not any(tmp_path.iterdir())
