"""Reading every layer in one pass, into files that a cut-off run goes on with."""

from __future__ import annotations

from collections import namedtuple
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saesteer.data.labelled import LabelledText
from saesteer.models import Site, plain_model
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
PLAIN = ReadSettings()
SITES = [Site(0), Site(1), Site(2)]


def labelled(n: int = 24) -> list[LabelledText]:
    texts = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 6]) for i in range(n)]
    return [
        LabelledText(f"t{i}", text, "a", f"t{i}", span=text.split()[0], place=f"f.csv:{i + 2}")
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def rows(llama, monkeypatch):
    """Rows that are read in several chunks."""
    monkeypatch.setattr(reading, "CHUNK_ROWS", 4)
    return encode_labelled(llama.tokenizer, labelled(), PLAIN)


@contextmanager
def passes(model):
    """Keep how many real tokens each pass of the model takes."""
    seen: list[int] = []
    handle = plain_model(model).register_forward_pre_hook(
        lambda _, args, given: seen.append(int(given["attention_mask"].sum())), with_kwargs=True
    )
    yield seen
    handle.remove()


@pytest.mark.parametrize("positions", ["mean", "last", "span", "end"])
def test_every_layer_holds_what_hugging_face_gives_for_each_text_alone(
    llama, hf_model, tmp_path, positions
):
    settings = ReadSettings(positions=positions, after=" while" if positions == "end" else "")
    rows = encode_labelled(llama.tokenizer, labelled(10), settings)
    with passes(llama) as seen:
        store = read_layers(llama, rows, probe_sites(3, settings), tmp_path / "store", settings)
    # One pass over all of them, and the first row once more, to learn the width.
    assert sum(seen) == sum(map(len, rows)) + len(rows[0])
    reference = hf_model("llama")
    for number, row in enumerate(rows):
        with torch.inference_mode():
            out = reference(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        # The last entry has gone through the final norm.
        for layer in range(2):
            own = out[layer + 1][0][torch.tensor(row.kept)]
            expected = own[-1] if positions in ("last", "end") else own.mean(dim=0)
            found = store.site(Site(layer))[number]
            assert found == pytest.approx(expected.numpy(), rel=2e-3, abs=2e-3)


def test_what_is_read_of_a_text_is_the_text_the_span_or_the_end(llama):
    def read(text, **settings):
        (row,) = encode_labelled(llama.tokenizer, [text], ReadSettings(**settings))
        kept = [i for i, k in zip(row.ids, row.kept, strict=True) if k]
        return row, llama.tokenizer.decode(kept).strip()

    text = LabelledText("t", "the cat sat on the mat", "a", "t", span="sat on", place="f.csv:7")
    assert read(text, before="the cat:")[1] == text.text
    assert read(text, positions="span")[1] == "sat on"
    row, _ = read(text, positions="end", after=" while the dog")
    assert row.kept == (False,) * (len(row) - 1) + (True,)
    assert probe_sites(3, ReadSettings(layers=[2, 0])) == [Site(0), Site(2)]
    with pytest.raises(SiteError, match="names block 3 and the model has blocks 0 to 2"):
        probe_sites(3, ReadSettings(layers=[3]))
    with pytest.raises(DataError, match=r"f\.csv:7: the text has no span"):
        read(LabelledText("t", "the cat", "a", "t", place="f.csv:7"), positions="span")
    with pytest.raises(DataError, match=r"f\.csv:7: the text .* more than the model's context"):
        encode_labelled(llama.tokenizer, [text], PLAIN, max_length=3)


def test_chunks_hold_every_row_once_and_stay_within_memory(llama, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4 * 30 * 100)
    rows = encode_labelled(llama.tokenizer, labelled(50), PLAIN)
    chunks = list(length_chunks(rows, per_token=100))
    assert sorted(np.concatenate(chunks).tolist()) == list(range(50))
    assert all(sum(len(rows[i]) for i in chunk) <= 30 for chunk in chunks if len(chunk) > 1)


def test_a_reading_that_was_cut_off_goes_on(llama, rows, tmp_path, monkeypatch):
    expected = read_layers(llama, rows, SITES, tmp_path / "whole", PLAIN)
    real, written = reading._write_chunk, []

    def failing(path, *args):
        if len(written) == 3:
            raise RuntimeError("cut off")
        written.append(path.name)
        real(path, *args)

    monkeypatch.setattr(reading, "_write_chunk", failing)
    with pytest.raises(RuntimeError, match="cut off"):
        read_layers(llama, rows, SITES, tmp_path / "cut", PLAIN)
    with pytest.raises(OutputError, match="holds no activations"):
        LayerStore(tmp_path / "cut")
    monkeypatch.setattr(reading, "_write_chunk", real)
    with passes(llama) as seen:
        again = read_layers(llama, rows, SITES, tmp_path / "cut", PLAIN, metadata={"what": "test"})
    # The first text alone, to learn the widths, and the three chunks that were missing.
    assert len(seen) == 1 + 3
    assert again.metadata == {"what": "test"}
    for store in (again, LayerStore(tmp_path / "cut")):
        for site in SITES:
            assert np.array_equal(store.site(site), expected.site(site))
            assert store.residual_norm(site) == expected.residual_norm(site)


def test_two_that_read_alike_at_once_both_end_right(llama, rows, tmp_path, monkeypatch):
    expected = read_layers(llama, rows, SITES, tmp_path / "alone", PLAIN).site(Site(0))
    real, begun, inner = reading._write_chunk, [], []

    def meeting(path, *args):
        begun.append(path)
        if len(begun) == 2:
            # The other begins and ends before this one's second chunk is there.
            inner.append(read_layers(llama, rows, SITES, path.parent, PLAIN).site(Site(0)))
        real(path, *args)

    monkeypatch.setattr(reading, "_write_chunk", meeting)
    outer = read_layers(llama, rows, SITES, tmp_path / "store", PLAIN).site(Site(0))
    assert np.array_equal(outer, expected) and np.array_equal(inner[0], expected)


def test_what_does_not_fit_a_dtype_or_the_disk_and_a_damaged_store_are_said(
    llama, tmp_path, monkeypatch
):
    rows = encode_labelled(llama.tokenizer, labelled(4), PLAIN)
    store = read_layers(llama, rows, [Site(0)], tmp_path / "store", PLAIN)
    (file,) = store.folder.glob("*.safetensors")
    assert load_file(file)["blocks.0.hook_resid_post"].dtype == torch.float16
    module = plain_model(llama).model.layers[0]
    handle = module.register_forward_hook(lambda _m, _i, out: out * 1e6)
    try:
        read_layers(llama, rows, [Site(0)], tmp_path / "large", ReadSettings(storage="bfloat16"))
        with pytest.raises(OutputError, match=r"do not fit float16; set reading\.storage"):
            read_layers(llama, rows, [Site(0)], tmp_path / "half", PLAIN)
    finally:
        handle.remove()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(OutputError, match=r"holds no activations .* run the same command again"):
        store.site(Site(0))
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("usage", "free")(100))
    with pytest.raises(OutputError, match=r"room for 100 bytes and .* need 256 bytes"):
        read_layers(llama, rows, [Site(0)], tmp_path / "full", PLAIN)
