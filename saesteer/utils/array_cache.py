"""Arrays that are costly to compute, kept in files named by what they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from saesteer.utils.files import write_atomic

Arrays = Mapping[str, np.ndarray]


class ArrayCache:
    """Keeps arrays by content: equal inputs are computed once, whoever asks.

    Args:
        folder: Where the files go; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, kind: str, *parts: Any, compute: Callable[[], Arrays]) -> dict[str, np.ndarray]:
        """Return arrays from their file, computing and writing them first where there is none.

        A file that cannot be read is made again.

        Args:
            kind: What they are; the first part of the file's name.
            *parts: All that they depend on: strings, numbers, arrays or sequences of these.
            compute: Makes them.

        Raises:
            OutputError: The file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file, save_file

        target = self.folder / f"{kind}-{content_key(*parts)}.safetensors"
        with suppress(OSError, SafetensorError):
            return load_file(target)
        arrays = {name: np.ascontiguousarray(value) for name, value in compute().items()}
        write_atomic(target, lambda draft: save_file(arrays, draft))
        return arrays


def content_key(*parts: Any) -> str:
    """Return a short hash of strings, numbers, arrays and sequences of these."""
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()[:16]


def _feed(digest: Any, part: Any) -> None:
    if isinstance(part, np.ndarray):
        digest.update(f"array {part.dtype} {part.shape}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, list | tuple):
        digest.update(f"sequence {len(part)}".encode())
        for inner in part:
            _feed(digest, inner)
    else:
        digest.update(f"{type(part).__name__} {part!r};".encode())
