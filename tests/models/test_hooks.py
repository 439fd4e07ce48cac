"""Keep, replace and add at sites: hooks come off, and a place that nothing passed is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models import Site, encode_texts, plain_model, resolve_target
from saesteer.models.forward import last_logits, last_logits_in_parts
from saesteer.models.hooks import hooked, keeping, standing_in
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.models.unembed import Unembedding
from saesteer.utils.errors import HookError
from tests.by_hand import count_hooks

TEXTS = ["I like helping people, and I always listen.", "The cat sat"]


@pytest.fixture
def padded(tiny_model, arch):
    """A tiny model and left-padded rows for it."""
    model = tiny_model(arch)
    batch = pad_rows(encode_texts(model.tokenizer, TEXTS), padding_id(model))
    return model, batch.input_ids, batch.attention_mask.bool()


def test_left_padded_rows_have_the_logits_of_each_row_alone(padded, hf_model, arch):
    model, ids, mask = padded
    got = last_logits_in_parts(plain_model(model), ids, mask, max_tokens=1)
    for row, real, ours in zip(ids, mask, got, strict=True):
        with torch.no_grad():
            wanted = hf_model(arch)(row[real][None]).logits[0, -1]
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def test_the_last_residual_stream_gives_the_models_own_logits(padded):
    model, ids, mask = padded
    target = resolve_target(model, Site(2))
    with torch.no_grad(), keeping({"last": target}) as kept:
        wanted = last_logits(target.model, ids, mask)
    last = kept["last"][:, -1]
    unembedding = Unembedding(model)
    with torch.no_grad():
        torch.testing.assert_close(unembedding.logits(last), wanted, atol=1e-5, rtol=0)
        answers = torch.tensor([[3, 8], [40, 2]])
        some = unembedding.logits(last, answers)
    torch.testing.assert_close(some, wanted.gather(1, answers), atol=1e-5, rtol=0)


def test_what_is_replaced_and_added_reaches_the_logits_and_goes_away(tiny_llama):
    model, ids = tiny_llama, torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids).bool()
    target, before = resolve_target(model, Site(1)), count_hooks(tiny_llama)
    with torch.no_grad():
        clean = last_logits(target.model, ids, mask)
        with keeping({1: target}) as kept:
            last_logits(target.model, ids, mask)
        with hooked([(target, lambda hidden: hidden + 1.0)]):
            added = last_logits(target.model, ids, mask)
        with hooked([(target, lambda hidden: kept[1] + 1.0)]):
            replaced = last_logits(target.model, ids, mask)
        assert torch.equal(last_logits(target.model, ids, mask), clean)
    assert torch.equal(added, replaced) and not torch.allclose(added, clean)
    assert count_hooks(model) == before


def test_a_pass_may_end_where_everything_is_kept_and_an_unreached_place_is_said(tiny_llama):
    low, high = (resolve_target(tiny_llama, Site(layer)) for layer in (0, 2))
    ids = torch.tensor([[5, 6, 7, 8]])
    with keeping({"low": low}, stop=True) as kept:
        with hooked([(high, lambda hidden: pytest.fail("ran on"))], required=False):
            low.model(input_ids=ids)
    assert kept["low"].shape == (1, 4, 32)
    with pytest.raises(HookError, match=r"nothing passed through blocks\.2\.hook_resid_post"):
        with hooked([(high, lambda hidden: None)]):
            pass


@pytest.mark.parametrize("site", [Site(1), Site(1, "attn.hook_z"), Site(1, "hook_resid_mid")])
def test_hooks_and_stand_ins_come_off_after_an_exception(tiny_llama, site):
    target: Any = resolve_target(tiny_llama, site)
    before = count_hooks(tiny_llama)

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), hooked([(target, broken)]):
        target.model(input_ids=torch.tensor([[5, 6]]))
    with pytest.raises(ZeroDivisionError), standing_in({target.module: broken}):
        target.model(input_ids=torch.tensor([[5, 6]]))
    assert count_hooks(tiny_llama) == before and "forward" not in vars(target.module)
