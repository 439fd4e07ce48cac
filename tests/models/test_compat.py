"""What depends on another library's version."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models.compat import cache_argument, cached_length, find_cache, repeated_cache

COMMON: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4}
HEADS: dict[str, Any] = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
STATE: dict[str, Any] = {
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
}


def make(name: str) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    makers: dict[str, Any] = {
        "llama": lambda: tf.LlamaConfig(**COMMON, **HEADS),
        "gpt2": lambda: tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4),
        "gemma2": lambda: tf.Gemma2Config(**COMMON, **HEADS, sliding_window=4),
        "mamba": lambda: tf.MambaConfig(**COMMON, state_size=8),
        "mamba2": lambda: tf.Mamba2Config(
            **COMMON, num_heads=8, head_dim=8, n_groups=1, state_size=8
        ),
        "lfm2": lambda: tf.Lfm2Config(**COMMON, **HEADS, layer_types=kinds, block_multiple_of=16),
        "qwen3_5": lambda: tf.Qwen3_5TextConfig(**COMMON, **HEADS, **LINEAR),
        "falcon_h1": lambda: tf.FalconH1Config(**COMMON, **HEADS, **STATE, mamba_d_ssm=32),
        "jamba": lambda: tf.JambaConfig(
            **{**COMMON, **HEADS, "num_hidden_layers": 8}, num_experts=2, num_experts_per_tok=1
        ),
    }
    return tf.AutoModelForCausalLM.from_config(makers[name]()).eval()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_cache_is_found_named_and_repeated(name):
    model = make(name)
    ids = torch.arange(10, 18)[None]
    with torch.no_grad():
        cache = find_cache(model(ids[:, :5], use_cache=True))
        assert cached_length(cache) == 5
        named = cache_argument(model, repeated_cache(cache, 3))
        assert find_cache(named) is not cache
        rest = model(ids[:, 5:].expand(3, -1), **named, use_cache=True).logits
        expected = model(ids, use_cache=False).logits[:, 5:].expand(3, -1, -1)
    torch.testing.assert_close(rest, expected, rtol=1e-4, atol=1e-5)
    assert cached_length(cache) == 5


@pytest.mark.parametrize("name", ["mamba", "mamba2", "lfm2", "qwen3_5", "falcon_h1", "jamba"])
def test_a_cache_that_holds_states_is_found_and_not_repeated(name):
    model = make(name)
    ids = torch.arange(10, 15)[None]
    with torch.no_grad():
        cache = find_cache(model(ids, use_cache=True))
    assert cached_length(cache) == (None if "mamba" in name else 5)
    assert find_cache(cache_argument(model, cache)) is cache
    assert repeated_cache(cache, 2) is None
