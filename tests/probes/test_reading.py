"""Reading every layer in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.data.labelled import LabelledText
from saesteer.models import Site, plain_model
from saesteer.models.reading import pool, read_rows
from saesteer.probes import reading
from saesteer.probes.reading import (
    LayerStore,
    ReadSettings,
    encode_labelled,
    length_chunks,
    probe_sites,
    read_layers,
)
from saesteer.utils.errors import DataError, OutputError, SiteError

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
    llama, hf_model, tmp_path, positions
):
    model, texts = llama, labelled(10)
    settings = ReadSettings(positions=positions)
    rows = encode_labelled(model.tokenizer, texts, settings)
    sites = probe_sites(3, settings)
    store = read_layers(model, rows, sites, tmp_path / "store", positions=positions)
    reference = hf_model("llama")
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
        store = read_layers(llama, rows, sites, tmp_path / "store")
    finally:
        handle.remove()
    # The first row once more, to learn the width.
    assert tokens == sum(map(len, rows)) + len(rows[0])
    expected = read_rows(llama, rows, sites)
    for site in sites:
        by_hand = pool(expected[site], "mean").numpy()
        assert store.site(site) == pytest.approx(by_hand, rel=1e-3, abs=1e-3)


def test_end_reads_behind_the_words_after_the_text_and_span_the_span(llama):
    settings = ReadSettings(positions="end", after=" while the dog")
    row = encode_labelled(llama.tokenizer, labelled(1), settings)[0]
    assert row.kept == (False,) * (len(row) - 1) + (True,)
    plain = encode_labelled(llama.tokenizer, labelled(1), ReadSettings(before="the cat:"))[0]
    text = llama.tokenizer.decode([i for i, k in zip(plain.ids, plain.kept, strict=True) if k])
    assert text.strip() == labelled(1)[0].text

    # Or the labelled span alone.
    texts = [LabelledText("t", "the cat sat on the mat", "a", "t", span="sat on")]
    row = encode_labelled(llama.tokenizer, texts, ReadSettings(positions="span"))[0]
    kept = [i for i, k in zip(row.ids, row.kept, strict=True) if k]
    assert llama.tokenizer.decode(kept).strip() == "sat on"


def test_a_text_that_cannot_be_read_is_named(llama):
    texts = [LabelledText("t", "the cat", "a", "t", place="f.csv:7")]
    with pytest.raises(DataError, match=r"f\.csv:7: the text has no span"):
        encode_labelled(llama.tokenizer, texts, ReadSettings(positions="span"))
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

    assert probe_sites(3, ReadSettings(layers=[2, 0])) == [Site(0), Site(2)]
    with pytest.raises(SiteError, match="names block 3 and the model has blocks 0 to 2"):
        probe_sites(3, ReadSettings(layers=[3]))


def test_a_reading_that_was_cut_off_goes_on(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 4)
    rows, sites = encode_labelled(llama.tokenizer, labelled(), ReadSettings()), [Site(0), Site(2)]
    expected = read_layers(llama, rows, sites, tmp_path / "whole", metadata={"what": "test"})
    real, written = reading._write_chunk, []

    def failing(path, *args):
        if len(written) == 3:
            raise RuntimeError("cut off")
        written.append(path.name)
        real(path, *args)

    monkeypatch.setattr(reading, "_write_chunk", failing)
    with pytest.raises(RuntimeError, match="cut off"):
        read_layers(llama, rows, sites, tmp_path / "cut")
    with pytest.raises(OutputError, match="holds no activations"):
        LayerStore(tmp_path / "cut")
    monkeypatch.setattr(reading, "_write_chunk", real)
    passes = []
    handle = plain_model(llama).register_forward_pre_hook(lambda *_: passes.append(1))
    again = read_layers(llama, rows, sites, tmp_path / "cut", metadata={"what": "test"})
    handle.remove()
    # The first text alone, to learn the widths, and the three chunks that were missing.
    assert len(passes) == 1 + 3
    for store in (again, LayerStore(tmp_path / "cut")):
        for site in sites:
            assert np.array_equal(store.site(site), expected.site(site))
            assert store.residual_norm(site) == expected.residual_norm(site)
    assert again.metadata == {"what": "test"}


def test_two_that_read_alike_at_once_both_end_right(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 4)
    rows, sites = encode_labelled(llama.tokenizer, labelled(), ReadSettings()), [Site(0)]
    expected = read_layers(llama, rows, sites, tmp_path / "alone").site(Site(0))
    real, begun, inner = reading._write_chunk, [], []

    def meeting(path, *args):
        begun.append(path)
        if len(begun) == 2:
            # The other begins and ends before this one's second chunk is there.
            inner.append(read_layers(llama, rows, sites, path.parent).site(Site(0)))
        real(path, *args)

    monkeypatch.setattr(reading, "_write_chunk", meeting)
    outer = read_layers(llama, rows, sites, tmp_path / "store").site(Site(0))
    assert np.array_equal(outer, expected) and np.array_equal(inner[0], expected)


def test_any_safetensors_reader_opens_it_and_what_does_not_fit_is_said(llama, tmp_path):
    from safetensors.torch import load_file

    rows = encode_labelled(llama.tokenizer, labelled(4), ReadSettings())
    read_layers(llama, rows, [Site(0)], tmp_path, storage="float16")
    (file,) = tmp_path.glob("*.safetensors")
    assert load_file(file)["blocks.0.hook_resid_post"].dtype == torch.float16
    module = plain_model(llama).model.layers[0]
    handle = module.register_forward_hook(lambda _m, _i, out: out * 1e6)
    try:
        read_layers(llama, rows, [Site(0)], tmp_path / "large", storage="bfloat16")
        with pytest.raises(OutputError, match=r"do not fit float16; set reading\.storage"):
            read_layers(llama, rows, [Site(0)], tmp_path / "half", storage="float16")
    finally:
        handle.remove()


def test_a_full_disk_is_told_before_reading_and_a_damaged_store_named(llama, tmp_path, monkeypatch):
    rows = encode_labelled(llama.tokenizer, labelled(4), ReadSettings())
    store = read_layers(llama, rows, [Site(0)], tmp_path / "store")
    (file,) = store.folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(OutputError, match=r"holds no activations .* run the same command again"):
        store.site(Site(0))
    from collections import namedtuple

    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100))
    with pytest.raises(OutputError, match=r"cannot be written .*no room for 256 bytes"):
        read_layers(llama, rows, [Site(0)], tmp_path / "full")
