"""Any causal language model as one `TransformerBridge`, with the plain model kept beside it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

from saesteer.models.compat import (
    contiguous_head,
    keep_cache_names,
    nothing_started,
    quiet,
    take_tokenizer_output,
)
from saesteer.models.gguf_files import converted_gguf
from saesteer.models.placement import choose_device, choose_dtype
from saesteer.models.resolve import BUNDLED, ModelSource, check_size, near_bundled, resolve_model
from saesteer.utils.errors import MismatchError, ModelError, NetworkError
from saesteer.utils.text import library_said, one_line

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from saesteer.utils.progress import Progress


@dataclass(frozen=True)
class ModelInfo:
    """What saesteer keeps with a bridge."""

    source: ModelSource
    # The Hugging Face model, sharing the bridge's weights but none of its wrappers; a forward pass
    # or `generate` on it runs at Hugging Face's own speed.
    plain: PreTrainedModel
    # SHA-256 over the configuration and a sample of every weight.
    fingerprint: str
    # The number below which torch's hooks are the bridge's own.
    own_hooks: int


def load_model(
    name: str | os.PathLike[str] = "smollm2",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> TransformerBridge:
    """Load a language model with its tokenizer; of a multimodal model, the text part alone.

    Args:
        name: "smollm2" (bundled), a Hub id, a folder from save_pretrained, or a .gguf file.
        device: Where to run; chosen if None.
        dtype: float32, bfloat16 or float16; chosen by a quick measurement if None.
        device_map: Passed to transformers, for a model larger than one GPU; excludes `device`.
        trust_remote_code: Run code that comes with the model; only when the user asks for it.
        progress: Where to show the conversion of a .gguf file, which is done once.

    Returns:
        A bridge in evaluation mode; its `tokenizer` pads on the left.

    Raises:
        ModelError: The name points nowhere, or the model cannot be loaded or wrapped.
        NetworkError: The model is not cached and the Hub cannot be reached.

    Example:
        >>> model = ss.load_model(model_folder, device="cpu", dtype="float32")
        >>> model.cfg.d_model
        32
    """
    if device is not None and device_map is not None:
        raise ModelError("device and device_map exclude each other; give one of the two.")
    source = resolve_model(name)
    check_size(source)
    place = choose_device(device) if device_map is None else None
    chosen = choose_dtype(dtype, place or choose_device())
    location = source.location
    if source.kind == "gguf":
        location = str(converted_gguf(Path(source.location), source.sha256, progress))
    hf_model, tokenizer = _load_plain(location, chosen, device_map, trust_remote_code)
    if place is not None:
        try:
            hf_model.to(place)  # type: ignore[arg-type]
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"model {source.name!r} in {str(chosen).removeprefix('torch.')} does not fit on "
                f"{place}; use bfloat16, device_map='auto' or device='cpu'."
            ) from error
    return wrap_model(hf_model, tokenizer, source=source)


def wrap_model(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: ModelSource | None = None,
) -> TransformerBridge:
    """Wrap a Hugging Face model that is already in memory.

    Args:
        hf_model: A causal language model, or a multimodal one, of which the text part alone is
            wrapped; the bridge takes it over.
        tokenizer: Set to left padding with a padding token.
        source: Where the model came from, for the record.

    Raises:
        ModelError: transformer_lens has no adapter for the architecture, or a part of the model
            is offloaded.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> plain = AutoModelForCausalLM.from_pretrained(model_folder)
        >>> ss.wrap_model(plain, model.tokenizer).cfg.n_layers
        3
    """
    with quiet():
        from transformer_lens.model_bridge import TransformerBridge

    hf_model = _text_part(hf_model)
    hf_model.eval().requires_grad_(False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    tokenizer.padding_side = "left"
    name = source.name if source else hf_model.config.name_or_path or "model"
    if any(tensor.is_meta for tensor in hf_model.parameters()):
        raise ModelError(
            f"model {name!r}: its device_map leaves a part of it outside the devices' memory, "
            "where nothing can be hooked; use more devices, dtype bfloat16 or device='cpu'."
        )
    fingerprint = _fingerprint(hf_model)
    # The bridge replaces the model's modules in place. A structural copy that shares every
    # tensor keeps Hugging Face's own fast path at the price of the module objects alone.
    shared = {id(t): t for t in (*hf_model.parameters(), *hf_model.buffers())}
    plain = copy.deepcopy(hf_model, shared)
    try:
        with quiet(), nothing_started():
            bridge = TransformerBridge.boot_transformers(
                name,
                hf_model=hf_model,
                tokenizer=_stand_in(tokenizer),
                dtype=hf_model.dtype,
                device=None if hasattr(hf_model, "hf_device_map") else hf_model.device,
            )
    except Exception as error:
        raise ModelError(
            f"model {name!r} of architecture {type(hf_model).__name__} cannot be wrapped by "
            f"transformer_lens ({one_line(error)}); choose an architecture that it supports."
        ) from error
    # Not the property: its setter would read the tokenizer from disk again, make EOS the BOS of
    # one that has none, and take the vocabulary's size from it where the model's is larger.
    bridge._tokenizer = tokenizer
    bridge.eval()
    keep_cache_names(bridge)
    take_tokenizer_output(bridge, plain)
    for runner in (plain, bridge.original_model):
        contiguous_head(runner)
    where = source or ModelSource(name, "folder", name)
    info = ModelInfo(where, plain, fingerprint, own_hooks=RemovableHandle.next_id)
    bridge.saesteer = info  # type: ignore[assignment]
    return bridge


def _text_part(hf_model: PreTrainedModel) -> PreTrainedModel:
    """Return a multimodal model's text part as the class that Hugging Face has for it alone."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = hf_model.config.get_text_config(decoder=True)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if config is hf_model.config or kind is None or isinstance(hf_model, kind):
        return hf_model
    decoder: Any = hf_model.get_decoder()
    config.architectures, config.name_or_path = [kind.__name__], hf_model.config.name_or_path
    with torch.device("meta"):
        text = kind(config)
    if type(text.base_model) is not type(decoder):
        return hf_model
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(hf_model.get_output_embeddings())
    text.generation_config = hf_model.generation_config
    if hasattr(hf_model, "hf_device_map"):
        text.hf_device_map = _text_places(hf_model, text)
    return text


def _text_places(hf_model: Any, text: Any) -> dict[str, Any]:
    # The same modules under the names that they have in the text part.
    names = {id(module): name for name, module in text.named_modules()}
    places = {
        names[id(module)]: place
        for name, place in hf_model.hf_device_map.items()
        if id(module := hf_model.get_submodule(name)) in names
    }
    return places or {"": next(iter(hf_model.hf_device_map.values()))}


def _stand_in(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    # transformer_lens writes special tokens into the tokenizer it is given, and reads it from
    # disk again unless it is said to add BOS.
    copied = copy.deepcopy(tokenizer)
    copied.init_kwargs = {"name_or_path": "", **copied.init_kwargs, "add_bos_token": True}
    return copied


def model_info(model: TransformerBridge) -> ModelInfo:
    """Return what saesteer keeps with a bridge, which `load_model` or `wrap_model` made."""
    info = getattr(model, "__dict__", {}).get("saesteer")
    if not isinstance(info, ModelInfo):
        raise ModelError(
            "this TransformerBridge was not loaded by saesteer; use saesteer.load_model or "
            "saesteer.wrap_model on the Hugging Face model."
        )
    return info


def check_weights(
    model: TransformerBridge, made: str, name: str | None, fingerprint: str | None, otherwise: str
) -> None:
    """Refuse what was `made`, an SAE, a vector or probes, on what is known to be another model.

    A fingerprint of None, where it was not recorded, tells nothing.
    """
    info = model_info(model)
    # The package's own model is one file, checked by its SHA-256, or its original on the Hub.
    if not fingerprint or name == info.source.name == BUNDLED:
        return
    # Weights rounded to float16 have another fingerprint, which tells them from no others.
    if info.plain.dtype != torch.float16 and fingerprint != info.fingerprint:
        raise MismatchError(
            f"{made} on other weights (model {name}, fingerprint {fingerprint[:12]}) than this "
            f"model's ({info.source.name}, {info.fingerprint[:12]}); load that model, or "
            f"{otherwise}."
        )


def plain_model(model: TransformerBridge) -> PreTrainedModel:
    """Return the plain Hugging Face model that shares the bridge's weights.

    Example:
        >>> plain = ss.plain_model(model)
        >>> plain(**inputs).logits.shape[0]
        1
    """
    return model_info(model).plain


def block_name(model: TransformerBridge, layer: int) -> str:
    """Return where a block stands in a Hugging Face model, such as "model.layers.3" (Llama)."""
    mapping: Any = model.adapter.component_mapping
    return f"{mapping['blocks'].name}.{layer}"


def context_length(model: TransformerBridge) -> int | None:
    """Return the most tokens that a text may have; None where the configuration names no limit."""
    return getattr(plain_model(model).config.get_text_config(), "max_position_embeddings", None)


def _load_plain(
    location: str, dtype: torch.dtype, device_map: Any, trust: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                location,
                dtype=dtype,
                device_map=device_map,
                trust_remote_code=trust,
                output_loading_info=True,
            )
    except Exception as error:
        raise _load_error(location, error) from error
    model, report = loaded
    # transformers fills in missing weights with random numbers and says so in a log line.
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise ModelError(
            f"model {location!r} lacks {len(lacking)} of its weights ({', '.join(lacking[:3])}"
            f"{', ...' if len(lacking) > 3 else ''}); save or fetch it again, complete."
        )
    return model, tokenizer


def _load_error(location: str, error: Exception) -> ModelError | NetworkError:
    text = one_line(error, 10_000)
    offline = ("connect", "offline", "resolve host", "Max retries", "LocalEntryNotFound")
    if not os.path.isdir(location) and any(word.lower() in text.lower() for word in offline):
        return NetworkError(
            f"model {location!r} is not in the local cache and the Hugging Face Hub cannot be "
            f"reached{near_bundled(location)}; connect once, or use 'smollm2', a local folder or a "
            ".gguf file."
        )
    if "trust_remote_code" in text:
        return ModelError(
            f"model {location!r} needs code of its own; read it, then pass trust_remote_code=True "
            "(--set model.trust_remote_code=true)."
        )
    return ModelError(
        f"model {location!r} cannot be loaded ({library_said(error)}){near_bundled(location)}; "
        "check the name, the files and, for a gated model, HF_TOKEN."
    )


def _fingerprint(model: PreTrainedModel) -> str:
    # Rounding to bfloat16 and leaving out where and how the model was loaded gives one
    # fingerprint for one set of weights, whatever dtype it runs in; a sample of each tensor
    # tells two sets apart without reading gigabytes.
    config = _lasting(model.config.to_dict())
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.named_parameters()):
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // 64)
        sample = flat[::step][:64].to(torch.bfloat16).to(torch.float32).cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration, and those inside it, without where and how it was loaded."""
    passing = ("dtype", "torch_dtype", "_name_or_path", "transformers_version")
    return {
        key: _lasting(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in passing
    }
