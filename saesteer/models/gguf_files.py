"""GGUF files as dense safetensors folders, converted once and cached by content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from saesteer.errors import ModelError, OutputError
from saesteer.models.cache import build_once, cache_folder


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def converted_gguf(path: Path, sha256: str | None = None) -> Path:
    """Return a folder with the GGUF file's weights dequantised to float32 safetensors.

    The folder lives in the cache under the file's SHA-256, so each file is converted once.

    Args:
        path: The GGUF file.
        sha256: The digest that the file must have, if it is known.

    Raises:
        ModelError: The file has another digest, or transformers cannot read it.
        OutputError: The cache cannot be written.
    """
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions."
        ) from error
    if sha256 is not None and digest != sha256:
        raise ModelError(
            f"{path} has SHA-256 {digest[:16]}... where {sha256[:16]}... is expected; "
            "reinstall the package or fetch the file again."
        )
    folder = cache_folder() / "models" / f"{path.stem}-{digest[:12]}"
    return build_once(folder, lambda draft: _convert(path, digest, draft))


def _convert(path: Path, digest: str, folder: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # Without dequantize=True transformers 5 keeps the weights packed and cannot save them.
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise ModelError(
            f"{path} needs the package gguf to be read; pip install 'gguf>=0.16'."
        ) from error
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path} cannot be read as a GGUF language model ({why}); "
            "use a file of an architecture that transformers can load."
        ) from error
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OutputError(
            f"the cache folder {folder.parent} could not be filled ({error}); free some space or "
            "set SAESTEER_CACHE to another folder."
        ) from error
    tokenizer.save_pretrained(folder)
    record = {"source": path.name, "sha256": digest, "dtype": "float32"}
    (folder / "saesteer.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
