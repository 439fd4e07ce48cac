"""GGUF files as dense safetensors folders, converted once and cached by content."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.models.compat import counting_tensors, quiet
from saesteer.utils.cache import build_once, cache_folder
from saesteer.utils.errors import ModelError, OutputError
from saesteer.utils.progress import Progress
from saesteer.utils.text import one_line

# Of the GGUF specification: what a value's type number stands for, as struct writes it.
_SCALARS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MLP_BIAS = re.compile(r"blk\.\d+\.ffn_(down|gate|up)\.bias")
_LONGEST_NAME = 65_535
_MOST_DIMENSIONS = 8
# Far above what any model has; a tensor's name and shape take many times its bytes in memory.
_MOST_ENTRIES = 100_000
# A tokenizer's words.
_MOST_WORDS = 4_000_000


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself before its weights."""

    # Numbers, truth values and strings by key; arrays (the tokenizer) are left out.
    metadata: dict[str, str | int | float | bool]
    # The shape of every tensor by name, the fastest dimension first, as GGUF has it.
    tensors: dict[str, tuple[int, ...]]
    # Of every tensor its type's number, and where its data lies behind the header.
    places: dict[str, tuple[int, int]]
    # The byte order as struct writes it, and how many bytes the header has, padding left out.
    order: str
    length: int

    @property
    def architecture(self) -> str:
        """The architecture, as llama.cpp calls it; empty if none is named."""
        return str(self.metadata.get("general.architecture", ""))

    def size(self, key: str) -> int | None:
        """Return the architecture's number under a key such as "embedding_length"."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def gguf_header(path: Path) -> GgufHeader:
    """Return a GGUF file's metadata and the shapes of its tensors; no weight is read.

    Every count and length that the file declares is held against the bytes that are there before
    anything is read, so a damaged or hostile file costs no more than its own size.
    """
    try:
        with path.open("rb") as handle:
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).header()
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, struct.error) as error:
        raise ModelError(
            f"{path} is no whole GGUF file ({error}); fetch or write it again."
        ) from error


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{path} cannot be read ({error.strerror}); check the path and its permissions."
    )


class _Reader:
    """Reads a GGUF header from bytes; anything out of bounds is a ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._order = data, 0, "<"

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            # A big-endian file shows its version in the other byte order.
            self._order, self._at = ">", 4
            version = self._number("I")
        if version not in (2, 3):
            raise ValueError("its version is neither 2 nor 3")
        # The shortest tensor and the shortest entry there can be, in bytes.
        n_tensors, n_entries = self._count(24, "tensors"), self._count(13, "entries")
        if max(n_tensors, n_entries) > _MOST_ENTRIES:
            raise ValueError(
                f"it declares {n_tensors:,} tensors and {n_entries:,} entries and may have "
                f"{_MOST_ENTRIES:,}"
            )
        metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            key, kind = self._string(_LONGEST_NAME), self._number("I")
            if kind == _ARRAY:
                self._skip_array(key)
            else:
                metadata[key] = self._value(kind, key)
        shapes, places = {}, {}
        for _ in range(n_tensors):
            name, shape, place = self._tensor()
            shapes[name], places[name] = shape, place
        return GgufHeader(metadata, shapes, places, self._order, self._at)

    def _tensor(self) -> tuple[str, tuple[int, ...], tuple[int, int]]:
        name, dimensions = self._string(_LONGEST_NAME), self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name[:60]!r} declares {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return name, shape, (self._number("I"), self._number("Q"))

    def _skip_array(self, key: str) -> None:
        kind = self._number("I")
        if kind == _STRING:
            count = self._count(8, f"elements of {key[:60]!r}")
            if count > _MOST_WORDS:
                raise ValueError(f"it declares {count:,} words and may have {_MOST_WORDS:,}")
            for _ in range(count):
                self._skip(self._number("Q"))
        elif kind in _SCALARS:
            size = struct.calcsize(_SCALARS[kind])
            self._skip(size * self._count(size, f"elements of {key[:60]!r}"))
        else:
            raise ValueError(f"{key[:60]!r} is an array of an unknown type {kind}")

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise ValueError(f"{key[:60]!r} has an unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _count(self, smallest: int, what: str) -> int:
        count = self._number("Q")
        if count * smallest > len(self._data) - self._at:
            raise ValueError(f"it declares {count:,} {what} and is too short to hold them")
        return count

    def _string(self, longest: int | None = None) -> str:
        length = self._number("Q")
        if longest is not None and length > longest:
            raise ValueError(f"it declares a name of {length:,} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _number(self, kind: str) -> Any:
        return struct.unpack(self._order + kind, self._take(struct.calcsize(kind)))[0]

    def _take(self, length: int) -> bytes:
        start = self._at
        self._skip(length)
        return self._data[start : self._at]

    def _skip(self, length: int) -> None:
        if length > len(self._data) - self._at:
            raise ValueError("it ends within its header")
        self._at += length


def gguf_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def converted_gguf(path: Path, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """Return a folder with the GGUF file's weights dequantised to float32 safetensors.

    The folder lives in the cache under the file's SHA-256, so each file is converted once.
    """
    digest = gguf_digest(path)
    if sha256 is not None and digest != sha256:
        raise ModelError(
            f"{path} has SHA-256 {digest[:16]}... where {sha256[:16]}... is expected; "
            "reinstall the package or fetch the file again."
        )
    folder = cache_folder() / "models" / f"{path.stem}-{digest[:12]}"
    return build_once(folder, lambda draft: _convert(path, digest, draft, progress or Progress()))


def _convert(path: Path, digest: str, folder: Path, progress: Progress) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers reads no bias of a Llama's MLP unless it is told of them, and says nothing.
    header = gguf_header(path)
    biased = [name for name in header.tensors if _MLP_BIAS.fullmatch(name)]
    told = {"mlp_bias": True} if biased and header.architecture == "llama" else {}
    try:
        # Without dequantize=True transformers 5 keeps the weights packed and cannot save them.
        with quiet(), counting_tensors(progress, path.name):
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                **told,
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise ModelError(
            f"{path} needs the package gguf to be read; pip install 'gguf>=0.16'."
        ) from error
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as a GGUF language model ({one_line(error)}); "
            "use a file of an architecture that transformers can load."
        ) from error
    try:
        with quiet():
            model.save_pretrained(folder)
    except SafetensorError as error:
        raise OutputError(
            f"the cache folder {folder.parent} could not be filled ({error}); free some space or "
            "set SAESTEER_CACHE to another folder."
        ) from error
    tokenizer.save_pretrained(folder)
    record = {"source": path.name, "sha256": digest, "dtype": "float32"}
    (folder / "saesteer.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
