"""How deep and wide a model is, told from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from saesteer.models.gguf_files import gguf_header
from saesteer.models.resolve import ModelSource
from saesteer.models.sites import Site
from saesteer.utils.errors import MismatchError, SiteError

_RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
_AS_WIDE_AS_THE_MODEL = (*_RESIDUAL, "hook_attn_out", "hook_mlp_out")


class ModelShape(NamedTuple):
    """A model's number of blocks, width of its residual stream and number of heads in a block."""

    n_layers: int
    d_model: int
    # 0 where it is unknown.
    n_heads: int = 0


def model_shape(source: ModelSource) -> ModelShape | None:
    """Return a model's shape without loading it or asking the network.

    Read from config.json (in the folder, or in the Hub's local cache) or a GGUF file's header;
    None where that is not there or does not say.
    """
    if source.kind == "gguf":
        header = gguf_header(Path(source.location))
        names = ("block_count", "embedding_length", "attention.head_count")
        found = tuple(header.size(name) for name in names)
    else:
        found = _configured(source.location)
    n_layers, d_model, n_heads = found
    return ModelShape(n_layers, d_model, n_heads or 0) if n_layers and d_model else None


def _configured(location: str) -> tuple[int | None, ...]:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            location, local_files_only=True, trust_remote_code=False
        )
        # Every configuration answers to these names, whatever it calls them itself.
        text = config.get_text_config()
        return text.num_hidden_layers, text.hidden_size, getattr(text, "num_attention_heads", None)
    except Exception:
        # Not fetched yet, or of a kind that only loading, with its own messages, can tell.
        return None, None, None


def check_shape(source: ModelSource, site: Site, width: int | None, what: str) -> None:
    """Refuse, before a model is loaded or converted, what cannot belong to it."""
    shape = model_shape(source)
    if shape is None:
        return
    if not 0 <= site.layer < shape.n_layers:
        raise SiteError(
            f"{what}, {site}: model {source.name} has blocks 0 to {shape.n_layers - 1}; choose one "
            "of them."
        )
    if width is not None and site.hook in _AS_WIDE_AS_THE_MODEL and width != shape.d_model:
        raise MismatchError(
            f"{what} is {width} wide at {site} and model {source.name} {shape.d_model}; choose "
            "what was made on this model."
        )
