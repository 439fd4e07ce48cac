"""Reading rows and both sides of pairs: the right values, in order, pooled, and their file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.data import ContrastivePair, PairSet
from saesteer.models import Site, encode_statements, encode_texts, plain_model
from saesteer.models.loading import block_name, load_model
from saesteer.models.reading import (
    Activations,
    PairActivations,
    mean_norm,
    pool,
    read_pair_activations,
    read_rows,
)
from saesteer.models.tokens import TokenRow
from saesteer.steering import generate
from saesteer.utils.errors import ConfigError, DataError, ModelError, OutputError, SiteError

TEXTS = [
    "The cat",
    "I like helping people, and I always listen to what they say about the weather today.",
    "What do you think?",
    "x",
    "You are a helpful assistant and the dog ran home through the garden.",
]
POST = Site(1, "hook_resid_post")
SITES = [
    Site(0, "hook_resid_pre"),
    Site(2, "hook_resid_post"),
    POST,
    Site(1, "attn.hook_z"),
    Site(0, "hook_mlp_out"),
]


@pytest.mark.parametrize("arch", ["gpt2", "gemma3"])
def test_padded_batches_read_what_each_row_reads_alone(arch, tiny_model, hf_model):
    # Rows longer than Gemma's sliding window and positions of GPT-2's table among them, and a
    # statement behind a prompt, in batches of two.
    model, reference = tiny_model(arch), hf_model(arch)
    rows = encode_texts(model.tokenizer, TEXTS)
    rows += encode_statements(model.tokenizer, ["I like cats"], "What do you say?")
    read = read_rows(model, rows, [POST, Site(2, "hook_resid_pre")], max_rows=2)
    for site in read:
        assert read[site].n_texts == len(rows)
        for index, row in enumerate(rows):
            with torch.no_grad():
                out = reference(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
            wanted = out.hidden_states[2][0][list(row.kept)]
            torch.testing.assert_close(read[site].text(index), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "gemma3", "llama", "qwen3"])
def test_what_all_rows_begin_with_runs_once_and_is_read_as_in_whole_rows(
    arch, tiny_model, hf_model
):
    model, reference = tiny_model(arch), hf_model(arch)
    said = ["I like cats", "I", "I like dogs that ran home through the garden"]
    rows = encode_statements(model.tokenizer, said, "What would you say of animals, and of cats?")
    site, ran = Site(2, "hook_resid_pre"), []
    block = plain_model(model).get_submodule(block_name(model, 1))
    handle = block.register_forward_pre_hook(lambda _, given: ran.append(given[0].shape[:2]))
    read = read_rows(model, rows, [site])[site]
    handle.remove()
    assert sum(count * width for count, width in ran) < sum(map(len, rows))
    for index, row in enumerate(rows):
        with torch.no_grad():
            out = reference(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
        wanted = out.hidden_states[2][0][list(row.kept)]
        torch.testing.assert_close(read.text(index), wanted, rtol=1e-4, atol=1e-5)


def test_batches_of_any_size_and_single_sites_read_the_same(tiny_model):
    model = tiny_model("gpt2")
    rows = encode_texts(model.tokenizer, TEXTS)
    together = read_rows(model, rows, SITES)
    assert list(together) == SITES
    for limits in ({"max_rows": 2}, {"max_tokens": 1}):
        apart = read_rows(model, rows, SITES, **limits)
        for site in SITES:
            values = together[site].values, apart[site].values
            torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    for site in SITES:
        single = read_rows(model, rows, [site])[site]
        assert together[site].site == site
        torch.testing.assert_close(together[site].values, single.values, rtol=1e-4, atol=1e-5)
        assert torch.equal(together[site].offsets, single.offsets)


def test_the_pass_ends_at_the_deepest_site(tiny_model):
    model = tiny_model("gemma3")
    rows = encode_texts(model.tokenizer, ["The cat", "I like"])
    path = model.adapter.component_mapping["blocks"].name
    both = (plain_model(model), model.original_model)
    blocks = [block for inner in both for block in inner.get_submodule(path).children()]
    ran: list[int] = []
    handles = [b.register_forward_pre_hook(lambda *_: ran.append(1)) for b in blocks]
    for sites, count in (
        ([Site(0, "hook_resid_pre")], 1),
        ([Site(2, "hook_resid_pre"), Site(0)], 3),
        ([Site(1, "attn.hook_z"), Site(0)], 2),
    ):
        del ran[:]
        read_rows(model, rows, sites)
        assert len(ran) == count, sites
    for handle in handles:
        handle.remove()


def test_a_text_that_cannot_be_read_is_a_sentence_with_its_number(tiny_model):
    model, good = tiny_model("llama"), TokenRow((1, 5), (False, True))
    for row in (TokenRow((1, 5), (False, False)), TokenRow((), ())):
        with pytest.raises(DataError, match=r"^text 2 has no token to read; leave empty texts out"):
            read_rows(model, [good, row, good], [POST])
    fits = TokenRow((5,) * 192, (True,) * 192)
    assert len(read_rows(model, [fits], [Site(0)])[Site(0)].values) == 192
    long = TokenRow((5,) * 193, (True,) * 193)
    with pytest.raises(DataError, match=r"^text 2 has 193 tokens, more than .* context of 192; "):
        read_rows(model, [fits, long], [Site(0)])

    # It exists, but transformer_lens fills it only where use_attn_result is set.
    site = Site(1, "attn.hook_result")
    with pytest.raises(SiteError, match=r"site blocks\.1\.attn\.hook_result is never reached"):
        read_rows(model, [good], [Site(0), site])


def pair_set(*pairs):
    return PairSet("test", pairs, "python")


PAIRS = pair_set(
    ContrastivePair("0", "I like helping people.", "I like ignoring people."),
    ContrastivePair("1", "I listen.", "I never listen to what they say about the weather today."),
    ContrastivePair("own", "The dog", "The cat", prompt="What ran home?"),
)


def by_hand(model, reference, statement, prompt, layer=2):
    """Return the statement's hidden states from Hugging Face, found from the end of the row."""
    (row,) = encode_statements(model.tokenizer, [statement], prompt)
    with torch.no_grad():
        out = reference(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
    length = len(model.tokenizer(statement, add_special_tokens=False)["input_ids"])
    return out.hidden_states[layer][0, -length:]


def test_what_is_not_finite_is_an_error_that_names_site_layer_and_dtype(tiny_model_folder):
    model = load_model(tiny_model_folder("llama"), device="cpu", dtype="float16")
    rows = encode_texts(model.tokenizer, TEXTS[:2])
    plain: Any = plain_model(model)
    handle = plain.model.layers[1].register_forward_hook(lambda _m, _i, out: out * 1e6)
    try:
        with pytest.raises(ModelError, match=r"blocks\.1\.hook_resid_post \(layer 1\).* float16; "):
            read_rows(model, rows, [POST])
        with pytest.raises(ModelError, match=r"next token hold NaN .* dtype bfloat16 or float32"):
            generate(model, TEXTS[0], max_new_tokens=2, chat=False)
        assert bool(read_rows(model, rows, [Site(0)])[Site(0)].values.isfinite().all())
    finally:
        handle.remove()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_deltas_are_the_difference_of_pooled_statements(tiny_model, hf_model, pooling):
    model, reference = tiny_model("llama"), hf_model("llama")
    read = read_pair_activations(model, PAIRS, [POST], request="Say it.", pooling=pooling)[POST]
    assert read.deltas.shape == (3, 32)
    for index, pair in enumerate(PAIRS):
        prompt = pair.prompt or "Say it."
        sides = [by_hand(model, reference, s, prompt) for s in (pair.positive, pair.negative)]
        means = [side.mean(0) if pooling == "mean" else side[-1] for side in sides]
        torch.testing.assert_close(read.deltas[index], means[0] - means[1], rtol=1e-4, atol=1e-5)
    norms = [
        by_hand(model, reference, side, pair.prompt or "Say it.").norm(dim=1)
        for pair in PAIRS
        for side in (pair.positive, pair.negative)
    ]
    assert read.residual_norm == pytest.approx(float(torch.cat(norms).mean()), rel=1e-4)


def test_a_marked_span_alone_is_read(tiny_model):
    model = tiny_model("llama")
    pair = ContrastivePair(
        "s", "I like cats a lot", "I like dogs a lot", positive_span="cats", negative_span="dogs"
    )
    read = read_pair_activations(model, pair_set(pair), [POST], request="Say it.")[POST]
    (row,) = encode_statements(model.tokenizer, [pair.positive], "Say it.", spans=["cats"])
    assert len(read.positive.values) == sum(row.kept)
    whole = read_rows(model, encode_statements(model.tokenizer, [pair.positive], "Say it."), [POST])
    assert len(read.positive.values) < len(whole[POST].values)
    match = torch.cdist(read.positive.values, whole[POST].values).min(1).values
    assert match.max() < 1e-3


def test_an_saes_bos_before_a_template_without_one_is_read_at_the_same_tokens(
    tiny_model, hf_model, monkeypatch
):
    model = tiny_model("llama")
    tokenizer: Any = model.tokenizer
    template = "{% for m in messages %}{{ m.content }}: {% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    pairs = pair_set(ContrastivePair("0", "cats are fine", "dogs are fine"))
    ids = tokenizer("Say it.: cats are fine", add_special_tokens=False)["input_ids"]
    said = len(ids) - len(tokenizer("Say it.:", add_special_tokens=False)["input_ids"])
    for asked, head in ((True, [tokenizer.bos_token_id]), (None, []), (False, [])):
        read = read_pair_activations(model, pairs, [POST], request="Say it.", prepend_bos=asked)
        with torch.no_grad():
            states = hf_model("llama")(torch.tensor([[*head, *ids]]), output_hidden_states=True)
        wanted = states.hidden_states[POST.layer + 1][0, -said:]
        torch.testing.assert_close(read[POST].positive.values, wanted, rtol=1e-4, atol=1e-4)


def test_pooling_and_the_mean_norm_over_tokens_by_hand():
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    activations = Activations(values, torch.tensor([0, 3, 4, 9]), Site(0))
    texts = np.split(values.numpy(), [3, 4])
    np.testing.assert_allclose(pool(activations), [t.mean(0) for t in texts], rtol=1e-5)
    np.testing.assert_array_equal(pool(activations, "last"), [t[-1] for t in texts])
    wanted = np.linalg.norm(values.numpy(), axis=1).mean()
    assert mean_norm(activations) == pytest.approx(wanted, rel=1e-6)
    unknown: Any = "max"
    with pytest.raises(ConfigError, match=r"pooling 'max' is unknown; use 'mean' or 'last'\."):
        pool(activations, unknown)


@pytest.fixture
def pairs():
    values = torch.randn(9, 4, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    both = Activations(values, torch.tensor([0, 2, 3, 6, 9]), Site(7, "attn.hook_z"))
    return PairActivations(both.slice(0, 2), both.slice(2, 4), "last")


def test_what_is_saved_is_read_back(pairs, tmp_path):
    pairs.save(tmp_path / "pairs.safetensors")
    back = PairActivations.load(tmp_path / "pairs.safetensors")
    assert os.listdir(tmp_path) == ["pairs.safetensors"]
    assert (back.site, back.pooling) == (pairs.site, "last")
    assert torch.equal(back.deltas, pairs.deltas)
    for ours, theirs in ((pairs.positive, back.positive), (pairs.negative, back.negative)):
        assert torch.equal(ours.values, theirs.values)
        assert torch.equal(ours.offsets, theirs.offsets)
        assert theirs.values.dtype == torch.bfloat16


def test_a_missing_or_damaged_file_is_a_sentence(pairs, tmp_path):
    from safetensors.torch import save_file

    whole = tmp_path / "whole.safetensors"
    pairs.save(whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "bare.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors", metadata={"site": "blocks.1.x"})
    for name in ("missing", "cut", "folder", "bare", "other"):
        with pytest.raises(OutputError, match=rf"{name}\.safetensors cannot be read .*delete it"):
            PairActivations.load(tmp_path / f"{name}.safetensors")
