"""Reading every layer in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.data.labelled import LabelledText
from saesteer.models import Site, plain_model
from saesteer.models.pooling import pool
from saesteer.models.reading import read_rows
from saesteer.probes import reading
from saesteer.probes.reading import encode_labelled, length_chunks, probe_sites, read_layers
from saesteer.probes.settings import ReadSettings
from saesteer.utils.errors import DataError, SiteError

WORDS = ("the", "cat", "sat", "on", "the", "mat", "while", "the", "dog", "ran", "home", "now")


def labelled(n: int = 24) -> list[LabelledText]:
    texts = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 6]) for i in range(n)]
    return [
        LabelledText(f"t{i}", text, "a", f"t{i}", span=text.split()[0], place=f"f.csv:{i + 2}")
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama")


@pytest.mark.parametrize("positions", ["mean", "last", "span"])
def test_every_layer_holds_what_hugging_face_gives_for_each_text_alone(
    arch, tiny_model, hf_model, tmp_path, positions
):
    model, texts = tiny_model(arch), labelled(10)
    settings = ReadSettings(positions=positions)
    rows = encode_labelled(model.tokenizer, texts, settings)
    sites = probe_sites(3, settings)
    store = read_layers(model, rows, sites, tmp_path / "a.safetensors", positions=positions)
    reference = hf_model(arch)
    for number, row in enumerate(rows):
        with torch.inference_mode():
            out = reference(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        kept = torch.tensor(row.kept)
        # The last entry has gone through the final norm.
        for layer in range(2):
            own = out[layer + 1][0][kept]
            expected = own[-1] if positions == "last" else own.mean(dim=0)
            found = store.site(Site(layer))[number]
            assert found == pytest.approx(expected.numpy(), rel=2e-3, abs=2e-3)


def test_all_layers_come_from_one_pass_over_the_texts(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 5)
    rows = encode_labelled(llama.tokenizer, labelled(), ReadSettings())
    sites = [Site(0), Site(1), Site(2)]
    tokens = 0

    def count(module, args, kwargs):
        nonlocal tokens
        tokens += int(kwargs["attention_mask"].sum())

    handle = plain_model(llama).register_forward_pre_hook(count, with_kwargs=True)
    try:
        store = read_layers(llama, rows, sites, tmp_path / "a.safetensors")
    finally:
        handle.remove()
    # The first row once more, to learn the width.
    assert tokens == sum(map(len, rows)) + len(rows[0])
    expected = read_rows(llama, rows, sites)
    for site in sites:
        by_hand = pool(expected[site], "mean").numpy()
        assert store.site(site) == pytest.approx(by_hand, rel=1e-3, abs=1e-3)


def test_a_reading_that_was_cut_off_gives_the_same_numbers(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 1)
    rows = encode_labelled(llama.tokenizer, labelled(), ReadSettings())
    sites = [Site(1)]
    whole = read_layers(llama, rows, sites, tmp_path / "whole.safetensors")
    calls = 0
    real = reading.read_rows

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 20:
            raise RuntimeError("cut off")
        return real(*args, **kwargs)

    monkeypatch.setattr(reading, "read_rows", failing)
    with pytest.raises(RuntimeError, match="cut off"):
        read_layers(llama, rows, sites, tmp_path / "part.safetensors")
    calls = 100
    part = read_layers(llama, rows, sites, tmp_path / "part.safetensors")
    # The row that tells the width, and those that were not marked as done.
    assert calls == 100 + 1 + len(rows) - 16
    assert np.array_equal(part.site(Site(1)), whole.site(Site(1)))


def test_end_reads_behind_the_words_after_the_text(llama):
    settings = ReadSettings(positions="end", after=" while the dog")
    row = encode_labelled(llama.tokenizer, labelled(1), settings)[0]
    assert row.kept == (False,) * (len(row) - 1) + (True,)
    plain = encode_labelled(llama.tokenizer, labelled(1), ReadSettings(before="the cat:"))[0]
    text = llama.tokenizer.decode([i for i, k in zip(plain.ids, plain.kept, strict=True) if k])
    assert text.strip() == labelled(1)[0].text


def test_the_labelled_span_alone_is_read(llama):
    texts = [LabelledText("t", "the cat sat on the mat", "a", "t", span="sat on")]
    row = encode_labelled(llama.tokenizer, texts, ReadSettings(positions="span"))[0]
    kept = [i for i, k in zip(row.ids, row.kept, strict=True) if k]
    assert llama.tokenizer.decode(kept).strip() == "sat on"


def test_a_text_without_a_span_is_named(llama):
    texts = [LabelledText("t", "the cat", "a", "t", place="f.csv:7")]
    with pytest.raises(DataError, match=r"f\.csv:7: the text has no span"):
        encode_labelled(llama.tokenizer, texts, ReadSettings(positions="span"))


def test_a_text_longer_than_the_context_is_named(llama):
    texts = [*labelled(2), LabelledText("t", "cat " * 99, "a", "t", place="f.csv:9")]
    with pytest.raises(DataError, match=r"f\.csv:9: the text .* more than the model's context"):
        encode_labelled(llama.tokenizer, texts, ReadSettings(), max_length=20)


def test_chunks_hold_every_row_once_and_stay_within_memory(llama, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4 * 30 * 100)
    rows = encode_labelled(llama.tokenizer, labelled(50), ReadSettings())
    chunks = list(length_chunks(rows, per_token=100))
    assert sorted(np.concatenate(chunks).tolist()) == list(range(50))
    assert all(sum(len(rows[i]) for i in chunk) <= 30 for chunk in chunks if len(chunk) > 1)
    assert len(chunks) > 3


def test_layers_that_the_model_lacks_are_refused():
    assert probe_sites(3, ReadSettings(layers=[2, 0])) == [Site(0), Site(2)]
    with pytest.raises(SiteError, match="names block 3 and the model has blocks 0 to 2"):
        probe_sites(3, ReadSettings(layers=[3]))
