"""Tensors added to a GGUF file; what is in it already is copied byte for byte."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType
from jaxtyping import Float

from saesteer.models.gguf_files import GgufHeader, gguf_header
from saesteer.utils.errors import ModelError
from saesteer.utils.files import write_atomic

# Behind the four letters and the version, in all of version 2 and 3.
_N_TENSORS_AT = 8
_ALIGNMENT = "general.alignment"
_WIDEST_ALIGNMENT = 2**16


def add_tensors(
    source: Path, target: Path, tensors: Mapping[str, Float[np.ndarray, " width"]]
) -> Path:
    """Write a copy of a GGUF file with further tensors of one dimension, in float32.

    Raises:
        ModelError: The source is no whole GGUF file, is one part of several, or has such a tensor.
        OutputError: The copy cannot be written.
    """
    header = gguf_header(source)
    order, alignment = header.order, header.metadata.get(_ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= _WIDEST_ALIGNMENT:
        raise ModelError(f"{source} has {_ALIGNMENT} {alignment!r}; fetch or write it again.")

    def padding(size: int) -> bytes:
        return bytes(-size % alignment)

    start = header.length + len(padding(header.length))
    end = source.stat().st_size - start
    _check(source, header, end, tensors)
    at, infos, data = end + len(padding(end)), b"", b""
    for name, values in tensors.items():
        coded = name.encode()
        infos += struct.pack(f"{order}Q", len(coded)) + coded
        infos += struct.pack(f"{order}IQIQ", 1, len(values), GGMLQuantizationType.F32, at)
        written = values.astype(f"{order}f4").tobytes()
        written += padding(len(written))
        data, at = data + written, at + len(written)

    def write(draft: Path) -> None:
        with source.open("rb") as old, draft.open("wb") as new:
            head = bytearray(old.read(header.length))
            count = len(header.tensors) + len(tensors)
            struct.pack_into(f"{order}Q", head, _N_TENSORS_AT, count)
            new.write(head + infos + padding(len(head) + len(infos)))
            old.seek(start)
            shutil.copyfileobj(old, new, 2**20)
            new.write(padding(end) + data)
            new.flush()
            os.fsync(new.fileno())

    return write_atomic(target, write)


def _check(source: Path, header: GgufHeader, end: int, tensors: Mapping[str, np.ndarray]) -> None:
    if header.metadata.get("split.count", 1) != 1:
        raise ModelError(
            f"{source} is one part of several; join them first, with llama-gguf-split --merge."
        )
    there = sorted(tensors.keys() & header.tensors.keys())
    if there:
        raise ModelError(
            f"{source} has a tensor {there[0]} already; give the file as it was before that was "
            "added."
        )
    # Else what is added would lie where the last of its own data belongs.
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    for name, (kind, offset) in header.places.items():
        block, n_bytes = sizes.get(kind, (1, 0))
        if offset + prod(header.tensors[name]) // block * n_bytes > end:
            raise ModelError(f"{source} ends before its tensor {name}; fetch or write it again.")
