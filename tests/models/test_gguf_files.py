"""GGUF files as dense folders, converted once."""

from __future__ import annotations

import hashlib
import json
import os
import struct

import pytest
import torch

from saesteer.models import encode_texts, load_model, model_info, plain_model
from saesteer.models import gguf_files as module
from saesteer.models.gguf_files import converted_gguf, gguf_header
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.utils.errors import ModelError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAESTEER_CACHE", str(folder))
    return folder


def test_a_gguf_file_says_what_the_model_said_that_it_was_made_from(tiny_gguf, hf_model, cache):
    model = load_model(tiny_gguf, device="cpu", dtype="float32")
    texts = ["I like helping people.", "The cat"]
    batch = pad_rows(encode_texts(model.tokenizer, texts), padding_id(model), side="right")
    real = batch.attention_mask.bool()
    with torch.no_grad():
        wanted = hf_model("llama")(**batch.inputs).logits[real]
        plain = plain_model(model)(**batch.inputs).logits[real]
        bridge = model(batch.input_ids, attention_mask=batch.attention_mask)[real]
    torch.testing.assert_close(plain, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bridge, wanted, rtol=1e-4, atol=1e-4)
    assert model_info(model).source.kind == "gguf"


def test_a_file_is_converted_once_and_then_found_by_its_content(tiny_gguf, cache, monkeypatch):
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    first = converted_gguf(tiny_gguf, digest)
    assert (first / "model.safetensors").is_file()
    assert json.loads((first / "saesteer.json").read_text())["sha256"] == digest
    assert os.listdir(cache / "models") == [first.name]

    def never(*args):
        raise AssertionError("converted again")

    monkeypatch.setattr(module, "_convert", never)
    assert converted_gguf(tiny_gguf) == first
    by_file = load_model(tiny_gguf, device="cpu", dtype="float32")
    by_folder = load_model(first, device="cpu", dtype="float32")
    assert model_info(by_file).fingerprint == model_info(by_folder).fingerprint


def test_another_digest_and_what_is_no_gguf_are_sentences_that_leave_nothing(
    tiny_gguf, cache, tmp_path
):
    with pytest.raises(ModelError, match=r"has SHA-256 \w+\.\.\. where 0000.* is expected; reins"):
        converted_gguf(tiny_gguf, "0" * 64)
    assert not cache.exists()

    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF junk")
    with pytest.raises(ModelError, match=r"broken\.gguf is no whole GGUF file") as caught:
        load_model(file, device="cpu", dtype="float32")
    assert "\n" not in str(caught.value)
    assert not any(cache.rglob("*"))


def test_without_the_package_gguf_the_way_out_is_named(tiny_gguf, monkeypatch):
    from transformers import AutoModelForCausalLM

    def needs_gguf(*args, **kwargs):
        raise ImportError("Loading a GGUF checkpoint requires GGUF>=0.10.0")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", needs_gguf)
    with pytest.raises(ModelError, match=r"needs the package gguf to be read; pip install 'gguf"):
        converted_gguf(tiny_gguf)


def entry(key, kind, value):
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def header(*entries, tensors=0, declared=None):
    count = len(entries) if declared is None else declared
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + b"".join(entries)


def test_a_header_is_what_gguf_reads(tiny_gguf):
    from gguf import GGUFReader

    ours, theirs = gguf_header(tiny_gguf), GGUFReader(tiny_gguf)
    assert ours.architecture == "llama"
    assert (ours.size("embedding_length"), ours.size("block_count")) == (32, 3)
    assert ours.tensors == {t.name: tuple(int(n) for n in t.shape) for t in theirs.tensors}
    for key, value in ours.metadata.items():
        assert value == theirs.fields[key].contents()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"GGUF", "ends within its header"),
        (b"ggml" + bytes(40), "does not start with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version"),
        (header(entry("a", 9, struct.pack("<IQ", 4, 2**40))), "declares 1,099,511,627,776"),
        (header(entry("a", 9, struct.pack("<IQ", 8, 2**40))), "declares 1,099,511,627,776"),
        (header(entry("a", 9, struct.pack("<IQ", 9, 1))), "unknown type 9"),
        (header(entry("a", 8, struct.pack("<Q", 2**63))), "ends within its header"),
        (header(entry("a", 99, b"")), "unknown type 99"),
        (header(declared=2**60), "declares 1,152,921,504,606,846,976 entries"),
        (header(tensors=2**60), "declares 1,152,921,504,606,846,976 tensors"),
        (
            header(entry("a", 0, b"x"), tensors=1)
            + struct.pack("<QcI", 1, b"w", 2**31)
            + bytes(40),
            "declares 2147483648 dimensions",
        ),
    ],
)
def test_a_hostile_header_is_refused_before_it_is_believed(tmp_path, data, why):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=f"is no whole GGUF file .*{why}"):
        gguf_header(path)
