"""Residual-stream activations of a corpus on disk, in shards that a cut-off run keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.loading import plain_model
from saesteer.models.reading import read_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import TokenRow
from saesteer.utils.errors import OutputError
from saesteer.utils.files import build_folder, check_room, remove_abandoned
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS_PER_SHARD = 1024


@dataclass(frozen=True)
class Harvest:
    """Activations on disk: `<folder>/<number>/<site>.safetensors`, by the shards' numbers."""

    folder: Path
    shards: tuple[int, ...]

    def load(self, shard: int, site: str) -> Float[Tensor, "token d_model"]:
        """Return one shard's activations at a site, in the dtype they were read in."""
        from safetensors.torch import load_file

        return load_file(self.folder / f"{shard:05d}" / f"{site}.safetensors")["activations"]


def harvest(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sites: Sequence[str],
    folder: Path,
    *,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Harvest:
    """Read the kept tokens' activations at all sites in one pass and store them in shards.

    Shards that are already there are not read again, so a run that was cut off goes on where it
    stopped. The folder's name should depend on everything that the activations depend on (see
    `harvest_key`). The rows stand in a random order, since a shard is also the unit of shuffling in
    training; the last shard is that in which `max_tokens` are reached.
    """
    shards: list[tuple[Sequence[TokenRow], int]] = []
    tokens = 0
    for start in range(0, len(rows), ROWS_PER_SHARD):
        if max_tokens is not None and tokens >= max_tokens:
            break
        block = rows[start : start + ROWS_PER_SHARD]
        shards.append((block, sum(sum(row.kept) for row in block)))
        tokens += shards[-1][1]
    itemsize = plain_model(model).dtype.itemsize
    needed = tokens * int(model.cfg.d_model) * itemsize * len(sites)
    check_room(folder, needed, "activations", "**/*.safetensors")
    remove_abandoned(folder)
    read_at = [Site.parse(site) for site in sites]
    task = (progress or Progress()).task("reading activations", total=tokens, unit="tokens")
    with task:
        for number, (block, count) in enumerate(shards):
            _write_shard(model, block, read_at, folder / f"{number:05d}")
            task.advance(count)
    return Harvest(folder, tuple(range(len(shards))))


def harvest_key(
    fingerprint: str, rows: Sequence[TokenRow], sites: Sequence[str], dtype: torch.dtype
) -> str:
    """Return a short hash of everything that the stored activations depend on."""
    digest = hashlib.sha256(f"{fingerprint} {sorted(sites)} {dtype} {ROWS_PER_SHARD}".encode())
    for row in rows:
        digest.update(repr(row.ids).encode())
    return digest.hexdigest()[:16]


def _write_shard(
    model: TransformerBridge, rows: Sequence[TokenRow], sites: list[Site], target: Path
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(draft: Path) -> None:
        read = read_rows(model, rows, sites)
        for site in sites:
            values = read[site].values.contiguous()
            save_file({"activations": values}, draft / f"{site}.safetensors")

    try:
        build_folder(target, write)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"activations cannot be written to {target.parent} ({reason}); "
            "choose another folder or free some space."
        ) from error
