"""Whether a model or an SAE on disk is still the one a run was made with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from saesteer.utils.errors import OutputError

SUFFIXES = (".json", ".safetensors", ".bin", ".gguf", ".parquet", ".model", ".txt", ".jinja")
BLOCK = 65_536
BLOCKS = 16


def content_digest(path: Path) -> str:
    """Return a hash of a file, or of a folder's files, without reading gigabytes.

    Of each file its name, its size and 16 blocks of 64 KiB spread over it count: other weights
    differ in every block. A folder that is not there counts as empty.

    Args:
        path: A file, or a folder whose weights, settings and tables count.

    Raises:
        OutputError: A file cannot be read.
    """
    files = [path] if path.is_file() else sorted(_content(path))
    digest = hashlib.sha256()
    try:
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            # Rounded up, so that the last block reaches the end.
            step = max(BLOCK, -((BLOCK - size) // (BLOCKS - 1)))
            with file.open("rb") as stream:
                for start in range(0, size, step):
                    stream.seek(start)
                    digest.update(stream.read(BLOCK))
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror}); check the files.") from error
    return digest.hexdigest()


def _content(folder: Path) -> list[Path]:
    return [f for f in folder.glob("*") if f.suffix in SUFFIXES and f.is_file()]
