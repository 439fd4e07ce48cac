"""Activations of many texts at many sites: one safetensors file, memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.errors import OutputError
from saesteer.models.sites import Site

DTYPES = {"float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}
_NORMS = "residual_norms"


@dataclass(frozen=True)
class LayerStore:
    """What `StoreWriter` wrote: one vector per text and site, and each site's residual norm.

    Attributes:
        path: The file.
        sites: The sites, in order of depth.
        n_texts: Number of texts.
        metadata: What the writer was told.
    """

    path: Path
    sites: tuple[Site, ...]
    n_texts: int
    metadata: Mapping[str, str]

    def site(self, site: Site) -> Float[np.ndarray, "text d_model"]:
        """Return one site's vectors in float32; the other sites stay on disk."""
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            return file.get_tensor(str(site)).to(torch.float32).numpy()

    def residual_norm(self, site: Site) -> float:
        """Return the mean L2 norm over tokens at a site: one unit of strength "norm"."""
        return float(json.loads(self.metadata[_NORMS])[str(site)])


def open_store(path: Path) -> LayerStore:
    """Open a finished store.

    Raises:
        OutputError: The file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            sites = tuple(sorted(Site.parse(name) for name in file.keys()))  # noqa: SIM118
            n_texts = file.get_slice(str(sites[0])).get_shape()[0]
            json.loads(metadata[_NORMS])
    except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
        raise OutputError(
            f"{path} holds no activations ({error}); delete it and run the same command again."
        ) from error
    return LayerStore(path, sites, n_texts, metadata)


class StoreWriter:
    """Fills a store chunk by chunk, so that a reading that was cut off goes on where it stopped.

    Args:
        path: The finished file; until `finish` a draft stands beside it.
        sites: The sites.
        n_texts: Number of texts.
        width: d_model.
        storage: "float16" or "bfloat16".

    Raises:
        OutputError: The draft cannot be written.
    """

    def __init__(
        self, path: Path, sites: Sequence[Site], n_texts: int, width: int, storage: str
    ) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}")
        self._marker = path.with_name(f".{path.name}.json")
        self._sites = list(sites)
        self._shape = (len(sites), n_texts, width)
        self._code, self._dtype = DTYPES[storage]
        self._norms: dict[str, list[float]] = {}
        self.done = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            raise _unwritable(path, error) from error

    def _begin(self) -> None:
        # The real metadata takes this much room at the most; safetensors allows padding.
        self._room = 4096 + 160 * len(self._sites)
        size = self._room + 8 + 2 * int(np.prod(self._shape))
        if self._marker.is_file() and self._draft.is_file():
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(self._marker.read_text())
                if record["shape"] == list(self._shape) and self._draft.stat().st_size == size:
                    self.done, self._norms = int(record["done"]), record["norms"]
        if not self.done:
            with self._draft.open("wb") as file:
                file.truncate(size)
        self._values = np.memmap(
            self._draft, np.uint16, "r+", offset=8 + self._room, shape=self._shape
        )

    def write(
        self,
        rows: Int[np.ndarray, " chunk"],
        values: Mapping[Site, Float[Tensor, "chunk d_model"]],
        norms: Mapping[Site, tuple[float, int]] | None = None,
    ) -> None:
        """Write one chunk of texts and mark it as done.

        Args:
            rows: The texts' places.
            values: Their vectors at every site.
            norms: For each site the summed L2 norm over tokens, and how many tokens.

        Raises:
            OutputError: A value is too large for the storage.
        """
        for place, site in enumerate(self._sites):
            stored = values[site].to(self._dtype)
            if not bool(torch.isfinite(stored).all()):
                raise OutputError(
                    f"activations at {site} do not fit {str(self._dtype).removeprefix('torch.')}; "
                    "set reading.storage: bfloat16."
                )
            self._values[place, rows] = stored.view(torch.int16).numpy().view(np.uint16)
        for site, (total, count) in (norms or {}).items():
            old = self._norms.get(str(site), [0.0, 0])
            self._norms[str(site)] = [old[0] + total, old[1] + count]
        self.done += 1
        if self.done % 16 == 0:
            self._mark()

    def _mark(self) -> None:
        self._values.flush()
        record = {"shape": list(self._shape), "done": self.done, "norms": self._norms}
        draft = self._marker.with_suffix(".draft")
        draft.write_text(json.dumps(record))
        draft.replace(self._marker)

    def finish(self, metadata: Mapping[str, str]) -> LayerStore:
        """Write the header and put the file in its place.

        Raises:
            OutputError: The file cannot be written.
        """
        norms = {name: total / max(count, 1) for name, (total, count) in self._norms.items()}
        step = 2 * self._shape[1] * self._shape[2]
        header: dict[str, Any] = {
            str(site): {
                "dtype": self._code,
                "shape": list(self._shape[1:]),
                "data_offsets": [place * step, (place + 1) * step],
            }
            for place, site in enumerate(self._sites)
        }
        header["__metadata__"] = {**metadata, _NORMS: json.dumps(norms)}
        text = json.dumps(header).encode()
        if len(text) > self._room:
            raise OutputError(f"{self._path}: the metadata is too long; give shorter names.")
        try:
            self._values.flush()
            with self._draft.open("r+b") as file:
                file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
            os.replace(self._draft, self._path)
            self._marker.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return open_store(self._path)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror}); choose another folder or free some space."
    )
