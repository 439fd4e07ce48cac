"""A model with biases on the MLP's output projections: an addition behind a block, in weights.

What is added at every position behind a block is a bias of that block's MLP, where the projection's
output goes into the residual stream as it is. The model is then an ordinary checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.loading import block_name, model_info, plain_model
from saesteer.utils.errors import ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

# Where the projection stands in a block, by the configuration's `model_type`.
_BIASED_ALREADY = {
    "bloom": "mlp.dense_4h_to_h",
    "gpt2": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "opt": "fc2",
    "phi": "mlp.fc2",
    "starcoder2": "mlp.c_proj",
}
# Those whose configuration says `mlp_bias`, which engines read too.
_GATED = "mlp.down_proj"
_HAS_MLP_BIAS = ("granite", "llama", "nemotron", "smollm3")
# Those that are Llamas by another name, as long as no layer's attention slides.
_AS_LLAMA = ("mistral", "qwen2")
_NORM_FOLLOWS = (
    *("exaone4", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text", "glm4"),
    *("olmo2", "olmo3"),
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def with_output_biases(
    model: TransformerBridge, biases: Mapping[int, Float[Tensor, " d_model"]]
) -> PreTrainedModel:
    """Return a model that adds to every position behind some blocks, by the blocks' numbers.

    It shares all other weights with the plain model, whose configuration it has, but for
    `mlp_bias` (and the class Llama, for its kin).

    Raises:
        ModelError: No bias of this architecture does the same as the addition; or the model lies
            on several devices, or its weights are packed.
    """
    plain: Any = plain_model(model)
    if hasattr(plain, "hf_device_map"):
        raise ModelError(
            f"model {model_info(model).source.name!r} lies where its device_map says; load it "
            "without one, on device 'cpu' say."
        )
    if getattr(plain.config, "quantization_config", None):
        raise ModelError(
            f"model {model_info(model).source.name!r} holds packed weights; bake the model that it "
            "was packed from, and pack that."
        )
    projection, kind, config = _biased(plain)
    with torch.device("meta"):
        made = kind(config)
    own, state = made.state_dict(), plain.state_dict()
    # Engines want one for every projection once the configuration speaks of them.
    for name in own.keys() - state.keys():
        state[name] = torch.zeros(own[name].shape, dtype=plain.dtype, device=plain.device)
    for layer, bias in biases.items():
        name = f"{block_name(model, layer)}.{projection}.bias"
        if name not in own:
            raise _unlike(plain.config, "its MLP's output projection has no bias")
        scaled = bias.to(state[name].device, torch.float64) / _residual_multiplier(config)
        state[name] = (state[name] + scaled).to(state[name].dtype)
    made.load_state_dict(state, assign=True)
    made.tie_weights()
    # Those that are not saved, such as rotary frequencies.
    for name, buffer in plain.named_buffers():
        if name not in own:
            parent, _, leaf = name.rpartition(".")
            made.get_submodule(parent).register_buffer(leaf, buffer, persistent=False)
    made.generation_config = copy.deepcopy(plain.generation_config)
    return made.eval().requires_grad_(False)


def _biased(plain: Any) -> tuple[str, Any, Any]:
    """Return the projection's place in a block, and the class and configuration with its bias."""
    config = copy.deepcopy(plain.config)
    name = config.model_type
    if name in _NORM_FOLLOWS or not getattr(config, "do_layer_norm_before", True):
        raise _unlike(config, "a norm follows its MLP's output projection")
    if any(getattr(config, count, None) for count in _EXPERTS):
        raise _unlike(config, "its MLP is a mixture of experts")
    if name in _BIASED_ALREADY:
        return _BIASED_ALREADY[name], type(plain), config
    if name in _HAS_MLP_BIAS:
        config.mlp_bias = True
        return _GATED, type(plain), config
    if name not in _AS_LLAMA:
        raise _unlike(config, "its MLP's output projection has no bias in its class")
    if _slides(config):
        raise _unlike(config, "its attention slides, which a Llama's does not")
    from transformers import LlamaForCausalLM

    return _GATED, LlamaForCausalLM, _as_llama(config)


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None


def _as_llama(config: Any) -> Any:
    from transformers import LlamaConfig

    facts = config.to_dict()
    known = LlamaConfig().to_dict().keys() - {"architectures", "model_type"}
    # A Qwen2 always has biases on queries, keys and values.
    biased = {"attention_bias": config.model_type == "qwen2", "mlp_bias": True}
    return LlamaConfig(**{k: v for k, v in facts.items() if k in known} | biased)


def _residual_multiplier(config: Any) -> float:
    # A Granite scales what its MLP gives before adding it.
    return float(getattr(config, "residual_multiplier", None) or 1.0)


def _unlike(config: Any, why: str) -> ModelError:
    return ModelError(
        f"no bias does the same as steering in a model of type {config.model_type}, because {why}; "
        "write a control vector for llama.cpp (saesteer vector export), or steer with the hook "
        "(saesteer generate)."
    )
