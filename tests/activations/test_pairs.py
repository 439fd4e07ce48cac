"""Both sides of pairs: the statement's tokens, pooled, and their difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.data import ContrastivePair, PairSet
from saesteer.models import Site, encode_statements
from saesteer.models.pair_activations import read_pair_activations
from saesteer.models.reading import read_rows

SITE = Site(1)


def pair_set(*pairs):
    made = [
        p if isinstance(p, ContrastivePair) else ContrastivePair(str(i), *p)
        for i, p in enumerate(pairs)
    ]
    return PairSet("test", tuple(made), "python")


PAIRS = pair_set(
    ("I like helping people.", "I like ignoring people."),
    ("I listen.", "I never listen to what they say about the weather today."),
    ContrastivePair("own", "The dog", "The cat", prompt="What ran home?"),
)


def by_hand(model, reference, statement, prompt, layer=2):
    """Return the statement's hidden states from Hugging Face, found from the end of the row."""
    (row,) = encode_statements(model.tokenizer, [statement], prompt)
    with torch.no_grad():
        out = reference(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
    length = len(model.tokenizer(statement, add_special_tokens=False)["input_ids"])
    return out.hidden_states[layer][0, -length:]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_deltas_are_the_difference_of_pooled_statements(tiny_model, hf_model, pooling):
    model, reference = tiny_model("llama"), hf_model("llama")
    read = read_pair_activations(model, PAIRS, [SITE], request="Say it.", pooling=pooling)[SITE]
    assert read.deltas.shape == (3, 32)
    for index, pair in enumerate(PAIRS):
        prompt = pair.prompt or "Say it."
        sides = [by_hand(model, reference, s, prompt) for s in (pair.positive, pair.negative)]
        means = [side.mean(0) if pooling == "mean" else side[-1] for side in sides]
        torch.testing.assert_close(read.deltas[index], means[0] - means[1], rtol=1e-4, atol=1e-5)


def test_the_residual_norm_is_the_mean_over_all_statement_tokens(tiny_model, hf_model):
    model, reference = tiny_model("llama"), hf_model("llama")
    read = read_pair_activations(model, PAIRS, [SITE], request="Say it.")[SITE]
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
    read = read_pair_activations(model, pair_set(pair), [SITE], request="Say it.")[SITE]
    (row,) = encode_statements(model.tokenizer, [pair.positive], "Say it.", spans=["cats"])
    assert len(read.positive.values) == sum(row.kept)
    whole = read_rows(model, encode_statements(model.tokenizer, [pair.positive], "Say it."), [SITE])
    assert len(read.positive.values) < len(whole[SITE].values)
    match = torch.cdist(read.positive.values, whole[SITE].values).min(1).values
    assert match.max() < 1e-3


def test_the_chat_template_and_bos_can_be_left_out(tiny_model):
    model = tiny_model("llama")
    shown = {
        (chat, bos): read_pair_activations(
            model, PAIRS, [SITE], request="Say it.", chat=chat, prepend_bos=bos
        )[SITE].positive.values
        for chat in (True, False)
        for bos in (True, False)
    }
    plain, without = shown[False, True], shown[False, False]
    # The template opens with BOS itself; a plain text loses it.
    torch.testing.assert_close(shown[True, True], shown[True, False])
    assert not torch.allclose(plain, without, atol=1e-2)
    assert len(plain) == len(without)


def test_an_saes_bos_before_a_template_without_one_is_read_at_the_same_tokens(
    tiny_model, hf_model, monkeypatch
):
    model = tiny_model("llama")
    tokenizer: Any = model.tokenizer
    template = "{% for m in messages %}{{ m.content }}: {% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    pairs = pair_set(("cats are fine", "dogs are fine"))
    ids = tokenizer("Say it.: cats are fine", add_special_tokens=False)["input_ids"]
    said = len(ids) - len(tokenizer("Say it.:", add_special_tokens=False)["input_ids"])
    for asked, head in ((True, [tokenizer.bos_token_id]), (None, []), (False, [])):
        read = read_pair_activations(model, pairs, [SITE], request="Say it.", prepend_bos=asked)
        with torch.no_grad():
            states = hf_model("llama")(torch.tensor([[*head, *ids]]), output_hidden_states=True)
        wanted = states.hidden_states[SITE.layer + 1][0, -said:]
        torch.testing.assert_close(read[SITE].positive.values, wanted, rtol=1e-4, atol=1e-4)
