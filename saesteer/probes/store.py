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

from saesteer.models.sites import Site
from saesteer.utils.errors import OutputError
from saesteer.utils.files import abandoned, draft_of, drafts, leave, reserve, unwritable

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

    Every writer has a draft of its own, so that any number may fill one store at once; the first
    whole one stays. A draft whose writer is no more is taken over by the next that reads alike.

    Args:
        path: The finished file.
        sites: The sites.
        n_texts: Number of texts.
        width: d_model.
        storage: "float16" or "bfloat16".
        metadata: Kept in the file; only a draft with the same is gone on with.

    Raises:
        OutputError: The draft cannot be written, or there is no room for the whole store.
    """

    def __init__(
        self,
        path: Path,
        sites: Sequence[Site],
        n_texts: int,
        width: int,
        storage: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._sites = list(sites)
        self._shape = (len(sites), n_texts, width)
        self._code, self._dtype = DTYPES[storage]
        self._metadata = dict(metadata or {})
        # Header or progress takes this much room at the most; safetensors allows padding.
        self._room = 4096 + 160 * len(self._sites)
        self._norms: dict[str, list[float]] = {}
        self.done = 0
        self._draft = draft_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            self.discard()
            raise unwritable(path, error) from error

    def _begin(self) -> None:
        size = self._room + 8 + 2 * int(np.prod(self._shape))
        for left in drafts(self._path.parent, self._path.name):
            if not abandoned(left):
                continue
            # Of several writers that would take it over one succeeds.
            with suppress(FileNotFoundError):
                os.rename(left, self._draft)
                if self._goes_on(size):
                    break
                self._draft.unlink()
        else:
            with self._draft.open("xb") as file:
                # A memory-mapped file that meets a full disk later ends the process.
                reserve(file, size)
        self._values = np.memmap(
            self._draft, np.uint16, "r+", offset=8 + self._room, shape=self._shape
        )

    def _goes_on(self, size: int) -> bool:
        """Take over what a draft says of its progress; False if it is of something else."""
        with self._draft.open("rb") as file:
            text = file.read(self._room)
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(text.rstrip(b"\0"))
            if record["of"] == self._kind() and self._draft.stat().st_size == size:
                self.done, self._norms = int(record["done"]), record["norms"]
                return True
        return False

    def _kind(self) -> list[Any]:
        return [[str(site) for site in self._sites], list(self._shape), self._code, self._metadata]

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
                self.discard()
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
            self._values.flush()
            self._head({"of": self._kind(), "done": self.done, "norms": self._norms}, b"\0")

    def _head(self, record: Mapping[str, Any], padding: bytes, before: bytes = b"") -> None:
        text = json.dumps(record).encode()
        if len(text) > self._room:
            raise OutputError(f"{self._path}: the metadata is too long; give shorter names.")
        try:
            with self._draft.open("r+b") as file:
                file.write(before + text.ljust(self._room, padding))
        except OSError as error:
            raise unwritable(self._path, error) from error

    def finish(self) -> LayerStore:
        """Write the header and put the file in its place, unless another writer has.

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
        header["__metadata__"] = {**self._metadata, _NORMS: json.dumps(norms)}
        self._values.flush()
        self._head(header, b" ", self._room.to_bytes(8, "little"))
        try:
            if not self._path.is_file():
                os.replace(self._draft, self._path)
        except OSError as error:
            raise unwritable(self._path, error) from error
        self.discard()
        return open_store(self._path)

    def discard(self) -> None:
        """Remove the draft."""
        with suppress(OSError):
            self._draft.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the draft to the next writer; `finish` has put it in its place."""
        leave(self._draft)
