"""Tiny random models whose layers are not all of one kind, or that the bridge computes otherwise.

And for each any order of its layers as a model of its own, to Hugging Face alone: the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

HYBRIDS = ("lfm2", "qwen35", "falconh1", "jamba", "mamba", "gemma4")
VOCABULARY = 420
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
_SLIDING = ["sliding_attention", "full_attention"]


def _config(name: str) -> Any:
    import transformers as tf

    narrow: dict[str, Any] = {"head_dim": 8}
    gemma4: dict[str, Any] = {
        "head_dim": 16,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "sliding_window": 8,
        "layer_types": _SLIDING * 2,
    }
    linear: dict[str, Any] = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    ssm: dict[str, Any] = {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
    }
    return {
        "lfm2": lambda: tf.Lfm2Config(
            **_SHAPE, layer_types=["conv", "full_attention"] * 2, block_multiple_of=16
        ),
        "qwen35": lambda: tf.Qwen3_5TextConfig(**_SHAPE, **narrow, **linear),
        "falconh1": lambda: tf.FalconH1Config(
            **_SHAPE, **narrow, **ssm, mamba_d_state=8, mamba_expand=1
        ),
        "jamba": lambda: tf.JambaConfig(
            **{**_SHAPE, "num_hidden_layers": 6}, mamba_d_state=8, num_experts=2,
            num_experts_per_tok=1, attn_layer_period=3, attn_layer_offset=1,
        ),
        "mamba": lambda: tf.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, state_size=8
        ),
        "gemma4": lambda: tf.Gemma4TextConfig(**_SHAPE, **gemma4, num_kv_shared_layers=0),
        "gemma4-shared": lambda: tf.Gemma4TextConfig(
            **{**_SHAPE, **gemma4, "num_hidden_layers": 6, "layer_types": _SLIDING * 3},
            num_kv_shared_layers=2,
        ),
        "falcon-alibi": lambda: tf.FalconConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
            alibi=True, parallel_attn=False,
        ),
        "cohere": lambda: tf.CohereConfig(**_SHAPE),
        "recurrentgemma": lambda: tf.RecurrentGemmaConfig(
            **_SHAPE, lru_width=32, attention_window_size=8
        ),
    }[name]()  # fmt: skip


_MADE: dict[str, Any] = {}


def hybrid(name: str, make_tokenizer: Callable[[], Any]) -> Any:
    """Return a tiny bridge, one for the session; leave it as you found it."""
    if name not in _MADE:
        _MADE[name] = _made(name, make_tokenizer())
    return _MADE[name]


def _made(name: str, tokenizer: Any) -> Any:
    import transformers as tf

    from saesteer.models import wrap_model

    config = _config(name)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0, 0.15)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    config.architectures = [type(model).__name__]
    return wrap_model(model, tokenizer)


def reordered(plain: Any, order: Sequence[Any]) -> Any:
    """Return a Hugging Face model that has these layers and no others."""
    model = copy.deepcopy(plain)
    body = model.base_model
    body.layers = nn.ModuleList(copy.deepcopy(body.layers[i]) for i in order)
    for number, layer in enumerate(body.layers):
        module: Any
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    facts: dict[str, Any] = {"num_hidden_layers": len(order)}
    for name in ("layer_types", "layers_block_type"):
        if getattr(plain.config, name, None) is not None:
            facts[name] = [getattr(plain.config, name)[i] for i in order]
    # Some configurations work these out by themselves and let nobody set them.
    told = {name: property(lambda _, value=value: value) for name, value in facts.items()}
    for name in facts:
        vars(model.config).pop(name, None)
    model.config.__class__ = type("Told", (type(model.config),), told)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = model.config
    if hasattr(body, "embed_tokens_per_layer"):
        width = body.hidden_size_per_layer_input
        own = torch.cat([torch.arange(i * width, (i + 1) * width) for i in order])
        body.embed_tokens_per_layer.weight.data = body.embed_tokens_per_layer.weight[:, own]
        body.per_layer_model_projection.weight.data = body.per_layer_model_projection.weight[own]
        body.first_kv_shared_layer_idx = len(order)
    return model.eval()
