"""Steering vectors on disk: safetensors with the rest of the vector as JSON metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from saesteer.utils.errors import SteeringError
from saesteer.utils.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from saesteer.steering.vector import SteeringVector

FORMAT = "saesteer.steering_vector"
VERSION = 1
FILE_NAME = "vector.safetensors"


class _Feature(BaseModel):
    model_config = ConfigDict(extra="forbid")
    index: int
    weight: float
    cluster: int | None
    description: str | None


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    site: str
    norm: float
    residual_norm: float | None
    max_act: float | None
    features: list[_Feature]
    positions: str
    read_positions: str
    model: str
    model_fingerprint: str | None
    sae: str | None
    sae_fingerprint: str | None
    method: str
    name: str
    provenance: dict[str, JsonValue]


def save_vector(vector: SteeringVector, path: str | os.PathLike[str]) -> Path:
    """Write a vector; see `SteeringVector.save`."""
    from safetensors.torch import save

    target = Path(path)
    if target.is_dir() or target.suffix != ".safetensors":
        target = target / FILE_NAME
    metadata = {"format": FORMAT, "version": str(VERSION), "vector": _to_json(vector)}
    direction = vector.direction.detach().cpu().contiguous()
    write_atomic(target, save({"direction": direction}, metadata=metadata))
    return target


def read_vector_file(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return a vector's file and its fields, features as dicts; see `SteeringVector.load`."""
    source = Path(path)
    if source.is_dir():
        source = source / FILE_NAME
    if not source.is_file():
        raise SteeringError(
            f"{source}: there is no such steering vector; give a .safetensors file or a run's "
            "folder that holds one."
        )
    tensors, metadata = _read(source)
    if metadata.get("format") != FORMAT or "direction" not in tensors:
        raise SteeringError(
            f"{source}: this safetensors file is not a saesteer steering vector; give the "
            f"{FILE_NAME} of a run, or make one with saesteer run."
        )
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise SteeringError(
            f"{source}: the vector's format version is {version!r} and this saesteer reads "
            f"{VERSION}; use the saesteer that wrote it, or a newer one."
        )
    return source, {"direction": tensors["direction"], **_fields(source, metadata)}


def _to_json(vector: SteeringVector) -> str:
    fields: dict[str, Any] = {
        name: getattr(vector, name)
        for name in _Header.model_fields
        if name not in ("site", "features", "provenance")
    }
    fields["site"] = str(vector.site)
    fields["features"] = [
        {
            "index": f.index,
            "weight": f.weight,
            "cluster": f.cluster,
            "description": f.description,
        }
        for f in vector.features
    ]
    fields["provenance"] = dict(vector.provenance)
    try:
        return json.dumps(fields, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise SteeringError(
            f"vector {vector.name!r} cannot be written as JSON ({error}); keep only text, finite "
            "numbers, lists and dicts with text keys in its provenance."
        ) from error


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise SteeringError(
            f"{source}: cannot be read as safetensors ({error}); the file is cut off or of another "
            "kind, so copy or make it again."
        ) from error


def _fields(source: Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        return _Header.model_validate_json(metadata.get("vector", "")).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise SteeringError(
            f"{source}: field {place} of the vector's metadata is wrong ({first['msg']}); copy or "
            "make the file again."
        ) from error
