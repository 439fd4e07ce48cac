"""Linear maps and means on disk, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from saesteer.corruption.edits import Means
from saesteer.corruption.linear_map import LinearMap
from saesteer.corruption.program import LinearSpan
from saesteer.utils.errors import OutputError


def save_maps(maps: dict[LinearSpan, LinearMap], path: Path) -> None:
    """Write maps with their fits."""
    from safetensors.torch import save_file

    tensors, fits = {}, {}
    for span, one in maps.items():
        name = f"{span.first}-{span.last}"
        tensors[f"{name}.weight"] = one.weight.contiguous()
        tensors[f"{name}.bias"] = one.bias.contiguous()
        tensors[f"{name}.first"] = one.first.contiguous()
        # As text: JSON has no word for the NaN of a map that was never scored.
        fits[name] = {key: str(value) for key, value in one.scores().items()}
    save_file(tensors, path, metadata={"fits": json.dumps(fits)})


def load_maps(path: Path) -> dict[LinearSpan, LinearMap]:
    """Read maps back.

    Raises:
        OutputError: The file is damaged.
    """
    tensors, metadata = _read(path)
    maps = {}
    for name, fit in json.loads(metadata["fits"]).items():
        first, last = name.split("-")
        span = LinearSpan(int(first), int(last))
        maps[span] = LinearMap(
            span,
            tensors[f"{name}.weight"],
            tensors[f"{name}.bias"],
            tensors[f"{name}.first"],
            float(fit["r2"]),
            float(fit["r2_identity"]),
            int(fit["n_train"]),
            int(fit["n_held_out"]),
        )
    return maps


def save_means(means: Means, path: Path) -> None:
    """Write means."""
    from safetensors.torch import save_file

    tensors = {f"heads.{i}": value.contiguous() for i, value in means.heads.items()}
    tensors |= {f"mlps.{i}": value.contiguous() for i, value in means.mlps.items()}
    save_file(tensors, path, metadata={"n_tokens": str(means.n_tokens)})


def load_means(path: Path) -> Means:
    """Read means back.

    Raises:
        OutputError: The file is damaged.
    """
    tensors, metadata = _read(path)
    parts: dict[str, dict[int, torch.Tensor]] = {"heads": {}, "mlps": {}}
    for name, value in tensors.items():
        part, layer = name.split(".")
        parts[part][int(layer)] = value
    return Means(parts["heads"], parts["mlps"], int(metadata["n_tokens"]))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"{path} is damaged ({str(error)[:100]}); delete it and run the same command again."
        ) from error
