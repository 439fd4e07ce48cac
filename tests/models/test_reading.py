"""Reading: the right values, in the caller's order, no layer too many, hooks off."""

from __future__ import annotations

import contextlib

import pytest
import torch

from saesteer.models import Site, encode_statements, encode_texts, plain_model
from saesteer.models.reading import read_rows
from saesteer.models.tokens import TokenRow
from saesteer.utils.errors import DataError, SiteError

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


@contextlib.contextmanager
def counted_blocks(model):
    """Count the blocks that run, in the plain model and in the bridge's."""
    ran = []
    plain = plain_model(model)
    path = model.adapter.component_mapping["blocks"].name
    both = (plain, model.original_model)
    blocks = [block for inner in both for block in inner.get_submodule(path).children()]
    handles = [b.register_forward_pre_hook(lambda *_: ran.append(1)) for b in blocks]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def one_by_one(reference, rows, layer):
    """The hidden states that Hugging Face gives each row alone, without padding."""
    for row in rows:
        with torch.no_grad():
            out = reference(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
        yield out.hidden_states[layer][0][list(row.kept)]


def test_padded_batches_read_what_each_row_reads_alone(arch, tiny_model, hf_model):
    # Rows longer than Gemma's sliding window and positions of GPT-2's table among them.
    model = tiny_model(arch)
    rows = encode_texts(model.tokenizer, TEXTS)
    read = read_rows(model, rows, [POST, Site(2, "hook_resid_pre")])
    wanted = list(one_by_one(hf_model(arch), rows, 2))
    for site in read:
        for index, values in enumerate(wanted):
            got = read[site].text(index)
            torch.testing.assert_close(got, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_batches_of_any_size_read_the_same(tiny_model, site):
    model = tiny_model("gpt2")
    rows = encode_texts(model.tokenizer, TEXTS)
    together = read_rows(model, rows, [site])[site].values
    for limits in ({"max_rows": 1}, {"max_rows": 2}, {"max_tokens": 1}):
        apart = read_rows(model, rows, [site], **limits)[site].values
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_texts_come_back_in_the_callers_order(tiny_model):
    model = tiny_model("llama")
    rows = encode_texts(model.tokenizer, TEXTS)
    read = read_rows(model, rows, [POST], max_rows=2)[POST]
    back = read_rows(model, rows[::-1], [POST], max_rows=2)[POST]
    assert read.n_texts == len(TEXTS)
    assert read.offsets[0] == 0
    assert read.offsets.diff().tolist() == [sum(row.kept) for row in rows]
    assert int(read.offsets[-1]) == len(read.values)
    for index in range(len(TEXTS)):
        other = back.text(len(TEXTS) - 1 - index)
        torch.testing.assert_close(read.text(index), other, rtol=1e-4, atol=1e-5)


def test_only_the_statements_tokens_are_read(tiny_model, hf_model):
    model = tiny_model("llama")
    rows = encode_statements(model.tokenizer, ["I like cats", "No"], "What do you say?")
    read = read_rows(model, rows, [POST])[POST]
    for index, values in enumerate(one_by_one(hf_model("llama"), rows, 2)):
        assert len(values) == sum(rows[index].kept) < len(rows[index])
        torch.testing.assert_close(read.text(index), values, rtol=1e-4, atol=1e-5)


def test_several_sites_in_one_pass_are_what_single_passes_read(arch, tiny_model):
    model = tiny_model(arch)
    rows = encode_texts(model.tokenizer, TEXTS)
    together = read_rows(model, rows, SITES)
    assert list(together) == SITES
    for site in SITES:
        single = read_rows(model, rows, [site])[site]
        assert together[site].site == site
        torch.testing.assert_close(together[site].values, single.values, rtol=1e-4, atol=1e-5)
        assert torch.equal(together[site].offsets, single.offsets)


@pytest.mark.parametrize(
    ("sites", "blocks"),
    [
        ([Site(0, "hook_resid_pre")], 1),
        ([Site(0)], 1),
        ([Site(1)], 2),
        ([Site(2, "hook_resid_pre"), Site(0)], 3),
        ([Site(0, "hook_mlp_out")], 1),
        ([Site(1, "attn.hook_z"), Site(0)], 2),
        ([Site(2)], 3),
    ],
    ids=str,
)
def test_the_pass_ends_at_the_deepest_site(tiny_model, sites, blocks):
    model = tiny_model("gemma3")
    rows = encode_texts(model.tokenizer, ["The cat", "I like"])
    with counted_blocks(model) as ran:
        read_rows(model, rows, sites)
    assert len(ran) == blocks


@pytest.mark.parametrize("row", [TokenRow((1, 5), (False, False)), TokenRow((), ())])
def test_a_text_with_nothing_to_read_is_a_sentence_with_its_number(tiny_model, row):
    good = TokenRow((1, 5), (False, True))
    with pytest.raises(DataError, match=r"^text 2 has no token to read; leave empty texts out\.$"):
        read_rows(tiny_model("llama"), [good, row, good], [POST])


def test_a_text_longer_than_the_context_is_a_sentence_with_its_number(arch, tiny_model):
    model = tiny_model(arch)
    fits = TokenRow((5,) * 192, (True,) * 192)
    assert len(read_rows(model, [fits], [Site(0)])[Site(0)].values) == 192
    long = TokenRow((5,) * 193, (True,) * 193)
    with pytest.raises(DataError, match=r"^text 2 has 193 tokens, more than .* context of 192; "):
        read_rows(model, [fits, long], [Site(0)])


def test_a_site_through_which_nothing_passes_is_a_sentence(tiny_model):
    # It exists, but transformer_lens fills it only where use_attn_result is set.
    site = Site(1, "attn.hook_result")
    with pytest.raises(SiteError, match=r"site blocks\.1\.attn\.hook_result is never reached"):
        read_rows(tiny_model("llama"), [TokenRow((1, 5), (False, True))], [Site(0), site])
