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
_BARE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4}
_HEADS: dict[str, Any] = _BARE | {"num_attention_heads": 4}
_SHAPE: dict[str, Any] = _HEADS | {"num_key_value_heads": 2, "intermediate_size": 64}
_SLIDING = ["sliding_attention", "full_attention"]
_GEMMA4: dict[str, Any] = _SHAPE | {
    "head_dim": 16,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 8,
    "layer_types": _SLIDING * 2,
    "num_kv_shared_layers": 0,
}
# Of each architecture the name of its configuration's class, and what is set in it.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "cohere": ("Cohere", _SHAPE),
    "cohere2": ("Cohere2", _SHAPE | {"sliding_window": 8}),
    "falcon-alibi": ("Falcon", _HEADS | {"alibi": True, "parallel_attn": False}),
    "falconh1": (
        "FalconH1",
        _SHAPE
        | {"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
        | {"mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 1},
    ),
    "gemma2": ("Gemma2", _SHAPE | {"head_dim": 16, "sliding_window": 8}),
    "gemma4": ("Gemma4Text", _GEMMA4),
    "gemma4-dense": ("Gemma4Text", _GEMMA4 | {"hidden_size_per_layer_input": 0}),
    "gemma4-shared": (
        "Gemma4Text",
        _GEMMA4 | {"num_hidden_layers": 6, "layer_types": _SLIDING * 3, "num_kv_shared_layers": 2},
    ),
    "gpt-neox": ("GPTNeoX", _HEADS | {"intermediate_size": 64, "use_parallel_residual": True}),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 4, "n_head": 4}),
    "granite": ("Granite", _SHAPE | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "jamba": (
        "Jamba",
        _SHAPE
        | {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1}
        | {"mamba_d_state": 8, "num_experts": 2, "num_experts_per_tok": 1},
    ),
    "lfm2": (
        "Lfm2",
        _SHAPE | {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 16},
    ),
    "llama": ("Llama", _SHAPE),
    "mamba": ("Mamba", _BARE | {"state_size": 8}),
    "mamba2": (
        "Mamba2",
        _BARE | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    ),
    "mistral": ("Mistral", _SHAPE | {"sliding_window": None}),
    "nemotron": ("Nemotron", _SHAPE),
    "olmo2": ("Olmo2", _SHAPE),
    "opt": ("OPT", _HEADS | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "opt-post-norm": (
        "OPT",
        _HEADS | {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "phi": ("Phi", _HEADS | {"intermediate_size": 64}),
    "qwen2": ("Qwen2", _SHAPE),
    "qwen3": ("Qwen3", _SHAPE | {"head_dim": 8}),
    "qwen3-moe": (
        "Qwen3Moe",
        _SHAPE
        | {"head_dim": 16, "moe_intermediate_size": 32}
        | {"num_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen35": (
        "Qwen3_5Text",
        _SHAPE
        | {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "recurrentgemma": ("RecurrentGemma", _SHAPE | {"lru_width": 32, "attention_window_size": 8}),
    "smollm3": ("SmolLM3", _SHAPE | {"pad_token_id": 0}),
    "starcoder2": ("Starcoder2", _SHAPE),
}


def random_model(name: str, **more: Any) -> Any:
    """Return a tiny Hugging Face model of an architecture, all of its weights at work."""
    import transformers as tf

    kind, settings = _CONFIGS[name]
    config = getattr(tf, f"{kind}Config")(**settings | more)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0, 0.15)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    model.config.architectures = [type(model).__name__]
    return model.eval()


_MADE: dict[str, Any] = {}


def hybrid(name: str, make_tokenizer: Callable[[], Any]) -> Any:
    """Return a tiny bridge, one for the session; leave it as you found it."""
    from saesteer.models import wrap_model

    if name not in _MADE:
        _MADE[name] = wrap_model(random_model(name), make_tokenizer())
    return _MADE[name]


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
