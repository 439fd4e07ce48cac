"""Control vectors in the GGUF format that llama.cpp and repeng read.

The format: `general.architecture` is "controlvector", `controlvector.model_hint` names the model's
architecture, `controlvector.layer_count` counts the directions, and every direction is a 1-D
float32 tensor `direction.L` with L from 1.

Which layer L is: llama.cpp adds `direction.L` to the output of the block that it numbers L from 0
(`build_cvec` at the end of block `il`, with the tensor `direction.il`), and repeng reads and writes
at the same place. So `direction.L` is the site `blocks.L.hook_resid_post`, with no shift, and block
0's output, which the format leaves out, cannot be written.

Two things differ from steering here: llama.cpp and repeng add a vector at every position, BOS and
the prompt included, and scale it by a bare factor (`--control-vector-scaled FILE:factor`) of the
natural vector.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from saesteer.models.gguf_files import gguf_header
from saesteer.models.resolve import check_shape, resolve_model
from saesteer.models.sites import Site
from saesteer.steering.positions import DEFAULT_POSITIONS
from saesteer.steering.strength import Addition, Unit, per_site, to_raw
from saesteer.steering.vector import SteeringVector
from saesteer.utils.errors import ModelError, SteeringError
from saesteer.utils.files import write_atomic

ARCHITECTURE = "controlvector"
_TENSOR = re.compile(r"direction\.([1-9]\d*)")


def export_gguf(
    vectors: SteeringVector | Sequence[SteeringVector],
    path: str | os.PathLike[str],
    *,
    strength: float | None = None,
    unit: Unit = "norm",
    model_hint: str | None = None,
) -> Path:
    """Write vectors as one llama.cpp control vector; vectors of one layer are added up.

    Args:
        vectors: One vector, or one or more for each layer, with their parts, all at
            `hook_resid_post` sites.
        path: The .gguf file.
        strength: What llama.cpp's factor 1.0 is to stand for; None for the natural vector.
        model_hint: The architecture in GGUF's words, such as "llama"; the model's name if None.
            llama.cpp does not check it.

    """
    gguf = _gguf()
    chosen = (vectors,) if isinstance(vectors, SteeringVector) else tuple(vectors)
    if not chosen:
        raise SteeringError("there are no vectors to export; give at least one.")
    directions = _summed(chosen, strength, unit)

    def write(draft: Path) -> None:
        writer = gguf.GGUFWriter(draft, ARCHITECTURE)
        writer.add_name(" + ".join(dict.fromkeys(v.name for v in chosen)))
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or chosen[0].model)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer in sorted(directions):
            writer.add_tensor(f"direction.{layer}", directions[layer])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write_atomic(path, write)


def import_gguf(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    positions: str = DEFAULT_POSITIONS,
) -> tuple[SteeringVector, ...]:
    """Read a llama.cpp or repeng control vector, one SteeringVector for each layer.

    The file says nothing of residual norms, features or reading positions, so units "norm" and
    "max_act" are errors until these are set. Layers whose direction is zero are left out. For what
    llama.cpp does at factor x, apply each vector at strength `x * vector.norm`, unit "raw", with
    positions "all".

    Args:
        path: The .gguf file.
        model: The model, as `load_model` takes it, which is not loaded; the vectors then must fit
            its depth and width, where its configuration is on this machine. None for the file's
            model_hint, unchecked.
        positions: Where the vectors are to be written.
    """
    gguf = _gguf()
    source = Path(path)
    if not source.is_file():
        raise SteeringError(f"{source}: there is no such control vector; give a .gguf file.")
    try:
        # Before the package gguf, which believes every count and size that a file declares.
        header = gguf_header(source)
    except ModelError as error:
        raise SteeringError(str(error)) from error
    if header.architecture != ARCHITECTURE:
        raise SteeringError(
            f"{source}: general.architecture is {header.architecture!r}, not {ARCHITECTURE!r}; "
            "give a control vector, not a model."
        )
    hint = header.metadata.get(f"{ARCHITECTURE}.model_hint")
    hint = hint if isinstance(hint, str) else None
    try:
        reader = gguf.GGUFReader(source)
        tensors = [(t.name, t.tensor_type.name, np.array(t.data)) for t in reader.tensors]
    except Exception as error:
        raise SteeringError(
            f"{source}: cannot be read as GGUF ({error}); the file is cut off or of another kind, "
            "so copy or make it again."
        ) from error
    directions = _directions(source, tensors)
    if model is not None:
        deepest = max(directions)
        site, what = Site(deepest), f"{source}: direction.{deepest}"
        check_shape(resolve_model(model), site, len(directions[deepest]), what)
    return tuple(
        SteeringVector.from_raw(
            directions[layer],
            site=Site(layer),
            model=model or hint or "unknown",
            positions=positions,
            method="imported control vector",
            name=f"{source.stem} layer {layer}",
            provenance={"format": "gguf controlvector", "file": source.name, "model_hint": hint},
        )
        for layer in sorted(directions)
    )


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise SteeringError(
            "the package gguf is not installed, which control vectors need; run pip install gguf."
        ) from error
    return gguf


def _summed(
    vectors: Sequence[SteeringVector], strength: float | None, unit: Unit
) -> dict[int, Float[np.ndarray, " d_model"]]:
    directions: dict[int, np.ndarray] = {}
    width = vectors[0].d_model
    pieces: list[Addition] = []
    for whole in vectors:
        length = whole.norm if strength is None else to_raw(strength, unit, whole)
        pieces += per_site(whole, length, "raw")
    for vector, length in pieces:
        site = vector.site
        if site.hook != "hook_resid_post" or site.layer < 1:
            raise SteeringError(
                f"vector {vector.name!r} is at {site}, which the GGUF control-vector format cannot "
                "hold; export vectors at hook_resid_post of block 1 or later."
            )
        if vector.d_model != width:
            raise SteeringError(
                f"vector {vector.name!r} is {vector.d_model} wide and {vectors[0].name!r} {width}; "
                "export vectors of one model."
            )
        part = vector.direction.detach().cpu().double().numpy() * length
        directions[site.layer] = directions.get(site.layer, np.zeros(width)) + part
    return {layer: d.astype(np.float32) for layer, d in directions.items()}


def _directions(
    source: Path, tensors: Sequence[tuple[str, str, np.ndarray]]
) -> dict[int, Float[np.ndarray, " d_model"]]:
    directions: dict[int, np.ndarray] = {}
    for name, kind, data in tensors:
        match = _TENSOR.fullmatch(name)
        if match is None or kind != "F32" or data.ndim != 1 or not np.isfinite(data).all():
            raise SteeringError(
                f"{source}: tensor {name!r} ({kind}, shape {data.shape}) is not a finite 1-D "
                "float32 tensor direction.L with L from 1; make the file again."
            )
        directions[int(match[1])] = data
    if len({len(data) for data in directions.values()}) > 1:
        raise SteeringError(f"{source}: its directions differ in width; make the file again.")
    kept = {layer: data for layer, data in directions.items() if data.any()}
    if not kept:
        raise SteeringError(f"{source}: holds no direction that is not zero; make the file again.")
    return kept
