"""Layer programs on the shared model against a plain loop over Hugging Face's blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.program import Program, parse_program
from saesteer.models import plain_model
from saesteer.utils.errors import ConfigError


def _plain(model) -> Any:
    return plain_model(model)


ORDERS = {
    "[]": [],
    "keep 1": [0],
    "skip 1": [0, 2],
    "skip 0": [1, 2],
    "repeat 1 x3": [0, 1, 1, 1, 2],
    "repeat 0-1 x2": [0, 1, 0, 1, 2],
    "reverse": [2, 1, 0],
    "[1]": [1],
    "all, all": [0, 1, 2, 0, 1, 2],
}


def test_a_program_gives_the_logits_of_the_same_blocks_run_by_hand(
    arch, tiny_model, hf_model, block_loop, some_ids
):
    model, reference, ids = tiny_model(arch), hf_model(arch), some_ids()
    with torch.no_grad():
        before = model(ids), plain_model(model)(ids).logits
        with corrupted(model, parse_program("0-2", 3)):
            within = model(ids), plain_model(model)(ids).logits
    assert torch.equal(before[0], within[0]) and torch.equal(before[1], within[1])
    for text, order in ORDERS.items():
        wanted = block_loop(reference, ids, order)
        with corrupted(model, parse_program(text, 3)), torch.no_grad():
            bridged, plain = model(ids), plain_model(model)(ids).logits
        torch.testing.assert_close(plain, wanted, atol=2e-5, rtol=1e-4, msg=text)
        torch.testing.assert_close(bridged, wanted, atol=2e-5, rtol=1e-4, msg=text)


def test_generating_with_a_cache_is_generating_without(
    arch, tiny_model, hf_model, block_loop, some_ids
):
    model, ids, reference = tiny_model(arch), some_ids(rows=2, width=12), hf_model(arch)
    for text, order in ORDERS.items():
        wanted = ids
        for _ in range(8):
            after = block_loop(reference, wanted, order)[:, -1].argmax(dim=-1)
            wanted = torch.cat([wanted, after[:, None]], dim=1)
        with corrupted(model, parse_program(text, 3)):
            said = _plain(model).generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8,
                do_sample=False, eos_token_id=None,
            )  # fmt: skip
        assert torch.equal(said, wanted), text


def test_padding_changes_nothing_of_what_is_generated(arch, tiny_model, some_ids):
    model, ids = tiny_model(arch), some_ids(rows=1, width=9)
    padded = torch.cat([torch.full((1, 4), 2), ids], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with corrupted(model, parse_program("repeat 1 x2 then skip 0", 3)):
        bare = _plain(model).generate(ids, attention_mask=torch.ones_like(ids), **options)
        left = _plain(model).generate(padded, attention_mask=mask, **options)
    assert left[0, 13:].tolist() == bare[0, 9:].tolist()


def test_the_bridge_caches_what_a_program_computes(tiny_llama, some_ids):
    ids = some_ids(rows=1)
    with corrupted(tiny_llama, parse_program("[0, 2]", 3)), torch.no_grad():
        _, cache = tiny_llama.run_with_cache(ids)
    torch.testing.assert_close(cache["blocks.2.hook_resid_pre"], cache["blocks.0.hook_resid_post"])
    assert "blocks.1.hook_resid_pre" not in cache


def test_the_bridge_generates_under_a_program(tiny_llama, some_ids):
    ids = some_ids(rows=1, width=6)
    with corrupted(tiny_llama, parse_program("reverse", 3)):
        bridged = tiny_llama.generate(
            ids, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False
        )
        plain = _plain(tiny_llama).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    assert bridged.tolist() == plain.tolist()


def test_everything_is_put_back_also_after_an_exception(arch, tiny_model, some_ids):
    model, ids = tiny_model(arch), some_ids()
    plain = plain_model(model)
    before = plain(ids).logits
    lists = [(owner, list(owner._modules)) for owner in plain.modules()]
    config = plain.config.to_dict()
    with pytest.raises(ZeroDivisionError), corrupted(model, parse_program("reverse", 3)):
        _ = 1 / 0
    assert plain.config.to_dict() == config
    assert [(owner, list(owner._modules)) for owner in plain.modules()] == lists
    assert torch.equal(plain(ids).logits, before)


def test_hooks_on_a_block_follow_it_wherever_it_runs(tiny_llama, some_ids):
    calls = []
    with corrupted(tiny_llama, parse_program("[1, 1, 0]", 3)):
        block = plain_model(tiny_llama).get_submodule("model.layers.1")
        handle = block.register_forward_hook(lambda *_: calls.append(1))
        plain_model(tiny_llama)(some_ids())
        handle.remove()
    assert len(calls) == 2


def test_no_weight_is_copied_or_lost(tiny_llama):
    plain = plain_model(tiny_llama)
    before = {name: tensor.data_ptr() for name, tensor in plain.named_parameters()}
    with corrupted(tiny_llama, parse_program("repeat 0 x3", 3)):
        within = {name: tensor.data_ptr() for name, tensor in plain.named_parameters()}
    assert within == before


def test_two_programs_at_once_are_refused(tiny_llama):
    with corrupted(tiny_llama, parse_program("keep 1", 3)):
        with pytest.raises(ConfigError, match="running already"):
            with corrupted(tiny_llama, parse_program("keep 2", 3)):
                pass


def test_a_program_for_another_model_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="read for 12 layers"):
        with corrupted(tiny_llama, Program((), 12)):
            pass


def test_a_map_that_was_not_fitted_is_missed(tiny_llama):
    with pytest.raises(ConfigError, match="no map for 'linear 0-1'"):
        with corrupted(tiny_llama, parse_program("linear 0-1", 3)):
            pass
