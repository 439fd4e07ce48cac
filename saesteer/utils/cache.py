"""What several runs share, kept by content: in memory within a process, in files between them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from saesteer.utils.errors import OutputError, UnwritableError
from saesteer.utils.files import build_folder, write_atomic

Kept = TypeVar("Kept")
Arrays = Mapping[str, np.ndarray]
# Models and what is measured on them are large; two of each serve sweeps that take turns.
MOST = {"model": 1, "sae": 3}
OTHERS = 2
# These hold a model, which would stay in memory for as long as they do.
ON_A_MODEL = "comparison"
# Of these files a model's or an SAE's folder consists.
SUFFIXES = (".json", ".safetensors", ".bin", ".gguf", ".parquet", ".model", ".txt", ".jinja")
BLOCK = 65_536
BLOCKS = 16


class Cache:
    """Keeps by content what is costly to make, so that equal work is done once, whoever asks.

    A run of its own has an empty cache; the trials of a sweep share one in each worker, and its
    folder between workers. Without a folder for activations, arrays and measured results, only
    what is in memory is kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[str, OrderedDict[Hashable, Any]] = {}

    def keep(
        self,
        kind: str,
        key: Hashable,
        make: Callable[[], Kept],
        *,
        room: Callable[[Sequence[Kept]], bool] = lambda kept: False,
    ) -> Kept:
        """Return what is kept in memory under a key, making it first where it is not there.

        Of each kind, such as "model", the last few used are kept; `room` says whether what is kept
        may stay beside a new one although it is as many as may be.
        """
        kept = self._kept.setdefault(kind, OrderedDict())
        if key not in kept:
            # Before the new one is made, or both would be in memory for a while.
            while len(kept) >= MOST.get(kind, OTHERS) and not room(list(kept.values())):
                kept.popitem(last=False)
                if kind == "model":
                    self._kept.pop(ON_A_MODEL, None)
            kept[key] = make()
        kept.move_to_end(key)
        return kept[key]

    def clear(self) -> None:
        self._kept.clear()

    def once(self, kind: str, *parts: Any, compute: Callable[[], Arrays]) -> dict[str, np.ndarray]:
        """Return arrays from their file, computing and writing them first where there is none.

        The file is named after their kind and all that they depend on, as `content_key` takes it;
        one that cannot be read is made again.
        """
        from safetensors.numpy import load_file, save_file

        name = f"{kind}-{content_key(*parts)}.safetensors"

        def made() -> dict[str, dict[str, np.ndarray]]:
            return {name: {key: np.asarray(value, order="C") for key, value in compute().items()}}

        return self.files({name: name}, made, load=load_file, save=save_file)[name]

    def record(self, kind: str, *parts: Any, compute: Callable[[], Any]) -> Any:
        """Return a JSON value from its file, computing it first where there is none; see `once`."""
        if self.folder is None:
            return compute()
        name = f"{kind}-{content_key(*parts)}.json"
        return self.files(
            {name: name},
            # As it will be read, so that who computes it has no other types than who finds it.
            lambda: {name: json.loads(json.dumps(compute()))},
            load=lambda path: json.loads(path.read_bytes()),
            save=lambda value, draft: draft.write_text(json.dumps(value), encoding="utf-8"),
        )[name]

    def files(
        self,
        names: Mapping[Hashable, str],
        compute: Callable[[], Mapping[Any, Kept]],
        *,
        load: Callable[[Path], Kept],
        save: Callable[[Kept, Path], object],
    ) -> Mapping[Any, Kept]:
        """Return values from their files, computing all of them where one cannot be read.

        `names` has each value's file's name, which stands for all that it depends on.
        """
        from safetensors import SafetensorError

        if self.folder is None:
            return compute()
        with suppress(OSError, ValueError, SafetensorError, OutputError):
            return {key: load(self.folder / name) for key, name in names.items()}
        made = compute()
        for key, value in made.items():
            write_atomic(self.folder / names[key], partial(save, value))
        return made


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


def content_digest(path: Path) -> str:
    """Return a hash of a model's or an SAE's files, without reading gigabytes.

    Of a file, or of each in a folder that holds weights, settings or a table, its name, its size
    and 16 blocks of 64 KiB spread over it count: other weights differ in every block. A folder
    that is not there counts as empty.
    """
    inside = [f for f in path.glob("*") if f.suffix in SUFFIXES and f.is_file()]
    digest = hashlib.sha256()
    try:
        for file in [path] if path.is_file() else sorted(inside):
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


def cache_folder() -> Path:
    """Return the folder for what every run uses: `$SAESTEER_CACHE`, else the user's cache."""
    chosen = os.environ.get("SAESTEER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("saesteer")


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, building it first if it is not there; see `build_folder`."""
    try:
        return build_folder(folder, build)
    except OSError as error:
        raise UnwritableError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); free "
            "some space or set SAESTEER_CACHE to another folder."
        ) from error
