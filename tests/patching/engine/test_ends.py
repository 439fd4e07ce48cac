"""The two ends of the scale: a full patch gives 1 and no patch gives 0, whatever the component."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.models import wrap_model
from saesteer.patching.activation import activation_patching, unpatched
from saesteer.patching.components import BY_COLUMN, BY_HEAD
from saesteer.patching.engine import sides as engine_sides
from saesteer.patching.metrics import metric_named
from tests.patching.engine_prompts import EQUAL, UNEQUAL, made_up_batch

LOGITS = metric_named("logit_difference")


@pytest.fixture(scope="module")
def one_head(tiny_tokenizer):
    """A model of one block with one head: patching it there patches all that moves words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        initializer_range=0.2,
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return wrap_model(LlamaForCausalLM(config), tokenizer)


def ending_alike(lengths):
    """Pairs whose last words are the same, as the prompts of a task are."""
    batch = made_up_batch(lengths)
    corrupted = batch.corrupted.clone()
    corrupted[:, -1] = batch.clean[:, -1]
    return replace(batch, corrupted=corrupted)


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_the_last_blocks_output_at_the_answer_is_the_whole_effect(arch, mode, lengths, tiny_model):
    batch = made_up_batch(lengths)
    result = activation_patching(tiny_model(arch), batch, "resid_post", LOGITS, mode=mode)
    share = result.normalised()
    full = 1 if mode == "denoising" else -1
    np.testing.assert_allclose(share[:, 2, -1], full, atol=1e-4)
    # Elsewhere it comes too late for anybody to read.
    assert not np.nan_to_num(share[:, 2, :-1]).any()


@pytest.mark.parametrize("component", ["resid_mid", "attn_out", "z"])
@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_where_a_component_carries_everything_its_patch_gives_one(one_head, component, lengths):
    result = activation_patching(one_head, ending_alike(lengths), component, LOGITS)
    last = result.normalised()[:, 0, -1]
    np.testing.assert_allclose(last, 1, atol=1e-4)


@pytest.mark.parametrize("component", ["resid_mid", "resid_post"])
def test_the_residual_at_the_answer_is_everything_in_one_block(component, one_head):
    batch = made_up_batch(UNEQUAL)
    result = activation_patching(one_head, batch, component, LOGITS)
    np.testing.assert_allclose(result.normalised()[:, 0, -1], 1, atol=1e-4)


def test_the_one_word_that_differs_is_the_whole_effect_at_the_bottom(arch, tiny_model):
    batch = made_up_batch(EQUAL, same=True)
    corrupted = batch.corrupted.clone()
    corrupted[:, 4] = (corrupted[:, 4] + 7) % 300
    batch = replace(batch, corrupted=corrupted)
    result = activation_patching(tiny_model(arch), batch, "resid_pre", LOGITS)
    share = result.normalised()
    np.testing.assert_allclose(share[:, 0, 4], 1, atol=1e-4)
    np.testing.assert_allclose(share[:, 0, 5:], 0, atol=1e-4)
    # Before the word both runs are the same run: exactly nothing.
    assert not share[:, :, :4].any()


@pytest.mark.parametrize(
    "component", [*BY_COLUMN, *BY_HEAD, *(f"{c} by position" for c in BY_HEAD)]
)
def test_a_runs_own_activations_change_nothing(arch, component, tiny_model, monkeypatch):
    component, by_position = component.split()[0], "position" in component
    model, batch = tiny_model(arch), made_up_batch(UNEQUAL, same=True)
    # The engine would not run what it knows to be the same; here it has to.
    monkeypatch.setattr(engine_sides, "_alike", lambda ids, *rest: torch.zeros_like(ids) > 0)
    result = activation_patching(model, batch, component, LOGITS, by_position=by_position)
    clean, _ = unpatched(model, batch, LOGITS)
    wanted = np.broadcast_to(clean.reshape(-1, *[1] * len(result.dims)), result.values.shape)
    there = ~np.isnan(result.values)
    assert there[:, -1].any()
    np.testing.assert_allclose(result.values[there], wanted[there], atol=1e-4)
