"""How deep and wide a model is, told from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from saesteer.models.gguf_files import gguf_header
from saesteer.models.resolve import ModelSource


class ModelShape(NamedTuple):
    """A model's number of blocks and the width of its residual stream."""

    n_layers: int
    d_model: int


def model_shape(source: ModelSource) -> ModelShape | None:
    """Return a model's shape without loading it or asking the network.

    Read from config.json (in the folder, or in the Hub's local cache) or a GGUF file's header;
    None where that is not there or does not say.

    Raises:
        ModelError: The GGUF file is damaged.
    """
    if source.kind == "gguf":
        header = gguf_header(Path(source.location))
        found = header.size("block_count"), header.size("embedding_length")
    else:
        found = _configured(source.location)
    n_layers, d_model = found
    return ModelShape(n_layers, d_model) if n_layers and d_model else None


def _configured(location: str) -> tuple[int | None, int | None]:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            location, local_files_only=True, trust_remote_code=False
        )
        # Every configuration answers to these names, whatever it calls them itself.
        text = config.get_text_config()
        return text.num_hidden_layers, text.hidden_size
    except Exception:
        # Not fetched yet, or of a kind that only loading, with its own messages, can tell.
        return None, None
