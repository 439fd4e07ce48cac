"""Patch results on disk: numbers as safetensors, labels as JSON beside them in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from saesteer.patching.result import PatchResult
from saesteer.utils.errors import OutputError

KEY = "patch_result"
ARRAYS = ("values", "clean", "corrupted")


def save_result(result: PatchResult, path: Path) -> None:
    """Write a result whole; `load_result` gives it back.

    Args:
        result: The result.
        path: A file such as `cells.safetensors`; its folder must be there.
    """
    from safetensors.numpy import save_file

    labels = {
        "method": result.method,
        "component": result.component,
        "mode": result.mode,
        "metric": result.metric,
        "dims": result.dims,
        "coords": {dim: list(result.coords[dim]) for dim in result.dims},
        "pairs": result.pairs,
        "tokens": result.tokens,
    }
    arrays = {name: np.ascontiguousarray(getattr(result, name)) for name in ARRAYS}
    save_file(arrays, path, metadata={KEY: json.dumps(labels)})


def load_result(path: Path) -> PatchResult:
    """Read a result back.

    Raises:
        OutputError: The file is missing, damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            labels: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise OutputError(
            f"{path} holds no patch result ({type(error).__name__}); delete it if it is there, and "
            "run the same command again."
        ) from error
    return PatchResult(
        method=labels["method"],
        component=labels["component"],
        mode=labels["mode"],
        metric=labels["metric"],
        dims=tuple(labels["dims"]),
        coords={dim: tuple(names) for dim, names in labels["coords"].items()},
        pairs=tuple(labels["pairs"]),
        tokens=tuple(tuple(words) for words in labels["tokens"]),
        **arrays,
    )
