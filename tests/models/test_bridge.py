"""What saesteer takes on trust from transformer_lens's bridge: that it is the same model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models import (
    Site,
    bridge_difference,
    check_bridge,
    plain_model,
    resolve_target,
    wrap_model,
)
from saesteer.models import compat as compat_module
from saesteer.steering import SteeringVector, steer
from saesteer.utils.errors import SiteError
from tests.by_hand import added
from tests.hybrids import random_model

IDS = torch.tensor([[5, 77, 300, 20, 401, 66, 90, 8]])


WRONG = ("cohere", "cohere2", "falcon-alibi")


@pytest.fixture
def model_of(tiny_tokenizer):
    """Return a function that makes a random model of an architecture, its weights all at work."""

    def make(name, dtype=torch.float32):
        plain = random_model(name)
        for key, buffer in plain.named_buffers():
            if key.endswith("layer_scalar"):
                buffer.fill_(0.8)
        return wrap_model(plain.to(dtype), tiny_tokenizer())

    return make


def unit(seed=0):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


def vector_at(site, model):
    return SteeringVector.from_raw(
        unit(), site=site, model="tiny", positions="all", residual_norm=1.0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRONG)
def test_a_bridge_that_computes_another_model_is_refused_with_the_difference(name, dtype, model_of):
    model = model_of(name, dtype)
    with torch.no_grad():
        right = plain_model(model)(input_ids=IDS).logits.float()
        wrong = model.original_model(input_ids=IDS).logits.float()
    # The reference: the two models called side by side do differ.
    assert ((wrong - right).abs().max() / right.std()) > 0.1
    difference = bridge_difference(model)
    assert difference is not None and difference > 0.1
    for hook in ("hook_mlp_out", "attn.hook_z"):
        with pytest.raises(SiteError, match=r"computes another model .*; use hook_resid_pre or"):
            resolve_target(model, Site(1, hook))
    with pytest.raises(SiteError, match=f"logits differ by {difference:.2g} of their spread"):
        check_bridge(model)
    with pytest.raises(SiteError, match="computes another model"):
        resolve_target(model, Site(1), bridged=True)


@pytest.mark.parametrize("name", ["llama", "bloom", "granite", "gemma4"])
def test_a_bridge_that_rounds_otherwise_is_not_another_model(name, model_of):
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(name, dtype)
        assert bridge_difference(model) is None
        check_bridge(model)


def test_a_bridge_that_loses_the_cache_is_refused(model_of, monkeypatch):
    # As transformer_lens 3.9 does under transformers 5.24 without the shim.
    monkeypatch.setattr("saesteer.models.loading.keep_cache_names", lambda bridge: None)
    model = model_of("llama")
    inputs = plain_model(model)(input_ids=IDS[:, :-1], use_cache=True)
    held = compat_module.find_cache(inputs)
    if compat_module.cache_argument(model.original_model, held) == {"past_key_values": held}:
        pytest.skip("this transformers calls the cache as transformer_lens does")
    with pytest.raises(SiteError, match=r"computes another model \(with a cache, block"):
        resolve_target(model, Site(1, "hook_mlp_out"))


@pytest.mark.parametrize(
    ("name", "hook"),
    [("granite", "hook_attn_out"), ("granite", "hook_mlp_out"), ("llama", "attn.hook_result")],
)
def test_a_site_that_the_model_never_reaches_is_refused_when_it_is_named(name, hook, model_of):
    model = model_of(name)
    assert f"blocks.1.{hook}" in model.hook_dict
    with pytest.raises(SiteError, match=r"is never reached in .*; use hook_resid_pre or"):
        resolve_target(model, Site(1, hook))
    with pytest.raises(SiteError, match="is never reached"):
        with steer(model, vector_at(Site(1, hook), model), 1.0, "raw", strict=False):
            pass


ATTENTION = {
    "granite": lambda block: (block.self_attn, 1 / 0.5),
    "llama": lambda block: (block.self_attn, 1.0),
    "gemma2": lambda block: (block.post_attention_layernorm, 1.0),
    "olmo2": lambda block: (block.post_attention_layernorm, 1.0),
    "bloom": lambda block: (block.self_attention, 1.0),
    "qwen3-moe": lambda block: (block.self_attn, 1.0),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_the_middle_of_a_block_is_steered_by_exactly_what_is_added(name, model_of):
    model = model_of(name)
    plain: Any = plain_model(model)
    blocks = plain.transformer.h if name == "bloom" else plain.model.layers
    module, scale = ATTENTION[name](blocks[1])
    with torch.no_grad(), steer(model, vector_at(Site(1, "hook_resid_mid"), model), 2.0, "raw"):
        got = model.original_model(input_ids=IDS, use_cache=False).logits
    with torch.no_grad(), added(module, 2.0 * scale * unit()):
        wanted = plain(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma4", "gemma4-dense", "opt-post-norm"])
def test_a_middle_that_the_block_does_not_hand_on_as_it_is_is_refused(name, model_of):
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(name, dtype)
        with pytest.raises(SiteError, match=r"changes the residual stream behind the middle"):
            resolve_target(model, Site(1, "hook_resid_mid"))
