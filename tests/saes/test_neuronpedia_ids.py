"""Where an SAE is on Neuronpedia is known without its weights."""

from __future__ import annotations

import json

import pytest

from saesteer.saes.neuronpedia_ids import neuronpedia_id_of
from saesteer.utils.errors import SaeError


def test_of_a_release_a_folder_and_the_bundled_sae(tmp_path):
    assert neuronpedia_id_of("gpt2-small-res-jb:blocks.6.hook_resid_pre") == "gpt2-small/6-res-jb"
    assert neuronpedia_id_of("smollm2") is None
    for metadata, found in (({"neuronpedia_id": "a/b"}, "a/b"), ({}, None), (None, None)):
        (tmp_path / "cfg.json").write_text(json.dumps({"metadata": metadata}))
        assert neuronpedia_id_of(tmp_path) == found


@pytest.mark.parametrize("content", ["{", "3", '{"metadata": 3}'])
def test_a_damaged_folder_is_a_sentence(tmp_path, content):
    (tmp_path / "cfg.json").write_text(content)
    with pytest.raises(SaeError, match=r"cfg\.json: cannot be read"):
        neuronpedia_id_of(tmp_path)


def test_an_sae_that_is_not_there_is_a_sentence():
    with pytest.raises(SaeError):
        neuronpedia_id_of("nothing-of-the-kind:1")
