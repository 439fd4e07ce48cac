"""One pass over the texts that reads every layer and keeps one vector per text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saesteer.data.labelled import LabelledText
from saesteer.models.reading import Activations, Pooling, mean_norm, pool, read_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import TokenRow, encode_statements
from saesteer.utils.errors import DataError, OutputError, SiteError
from saesteer.utils.files import check_room, write_atomic
from saesteer.utils.progress import Progress
from saesteer.utils.settings import Settings, Source

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 256
# What a chunk's activations may take in memory at all sites together, before they are pooled.
CHUNK_BYTES = 400 * 2**20
# Every so many chunks the token norms are measured.
NORM_EVERY = 8
INDEX = "index.json"
ReadPosition = Literal["mean", "last", "span", "end"]


class ReadSettings(Settings):
    """Where the residual stream is read; see `read_layers`.

    Attributes:
        positions: "mean" over the text's tokens, its "last" token, the mean over the labelled
            "span", or the "end" of the row, which only differs from "last" where words stand
            after the text.
        before: Words before every text, never read.
        after: Words after every text, read only by "end".
        hook: The hook's name inside each block.
        layers: The blocks; all if null.
        sae: Probe this SAE's codes at its own site instead of the residual stream.
        storage: How activations are kept on disk.
    """

    positions: ReadPosition = "mean"
    before: str = ""
    after: str = ""
    hook: str = "hook_resid_post"
    layers: list[int] | None = Field(default=None, min_length=1)
    sae: Source | None = None
    storage: Literal["float16", "bfloat16"] = "float16"

    @field_validator("layers")
    @classmethod
    def _no_layer_twice(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and (len(set(layers)) < len(layers) or min(layers) < 0):
            raise ValueError(f"{layers} names a layer twice or below 0; name each once")
        return layers

    @property
    def pooling(self) -> Pooling:
        """How the tokens that are read become one vector."""
        return "last" if self.positions == "last" else "mean"


def probe_sites(n_layers: int, settings: ReadSettings) -> list[Site]:
    """Return the sites to read, in order of depth; a layer must not be past the last one."""
    layers = range(n_layers) if settings.layers is None else sorted(settings.layers)
    for layer in layers:
        if layer >= n_layers:
            raise SiteError(
                f"reading.layers names block {layer} and the model has blocks 0 to {n_layers - 1}; "
                "choose among them."
            )
    return [Site(layer, settings.hook) for layer in layers]


def plain_texts(texts: Sequence[str]) -> list[LabelledText]:
    """Return texts on their own as labelled ones, each named by its number."""
    return [LabelledText(str(n), t, "", str(n), place=f"text {n}") for n, t in enumerate(texts, 1)]


def check_spans(texts: Sequence[LabelledText]) -> list[str]:
    """Return the labelled span of every text, which it must have."""
    for text in texts:
        if text.span is None:
            raise DataError(
                f"{text.place or text.id}: the text has no span and reading.positions is 'span'; "
                "give it one, or use 'mean'."
            )
    return [str(text.span) for text in texts]


def encode_labelled(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    settings: ReadSettings,
    *,
    prepend_bos: bool | None = None,
    max_length: int | None = None,
) -> list[TokenRow]:
    """Tokenise labelled texts as `encode_texts` does; kept are the tokens that are read."""
    spans = [text.text for text in texts]
    if settings.positions == "span":
        spans = check_spans(texts)
    rows = encode_statements(
        tokenizer,
        [f"{text.text}{settings.after}" for text in texts],
        settings.before or None,
        spans=spans,
        chat=False,
        prepend_bos=prepend_bos,
        max_length=max_length,
        what=[f"{text.place or text.id}: the text" for text in texts],
    )
    if settings.positions == "end":
        return [TokenRow(row.ids, (False,) * (len(row) - 1) + (True,)) for row in rows]
    return rows


class LayerStore:
    """One vector per text and site, and each site's residual norm: files in a folder.

    Every chunk of texts is a file of its own, so a reading that was cut off goes on where it
    stopped, and any number of runs may fill one store at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.metadata: dict[str, str] = index["metadata"]
            self.sites = tuple(Site.parse(name) for name in index["norms"])
            self._norms: dict[str, float] = index["norms"]
            self._rows: list[list[int]] = index["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def site(self, site: Site) -> Float[np.ndarray, "text d_model"]:
        """Return one site's vectors in float32; the other sites stay on disk."""
        parts = []
        try:
            for number in range(len(self._rows)):
                with safe_open(_chunk_file(self.folder, number), "pt") as file:
                    parts.append(file.get_tensor(str(site)).to(torch.float32).numpy())
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from error
        return np.concatenate(parts)[np.argsort(np.concatenate(self._rows))]

    def residual_norm(self, site: Site) -> float:
        """Return the mean L2 norm over tokens at a site: one unit of strength "norm"."""
        return self._norms[str(site)]

    def _damaged(self, error: Exception) -> OutputError:
        return OutputError(
            f"{self.folder} holds no activations ({error}); delete it and run the same command "
            "again."
        )


def read_layers(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    folder: Path,
    settings: ReadSettings,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> LayerStore:
    """Read every site in one pass over the rows, pooling as it goes, into files.

    The folder's name stands for all that the files depend on; the metadata is kept beside them.
    """
    chunks = _chunks(model, rows, sites, folder)
    norms = {str(site): [0.0, 0] for site in sites}
    with (progress or Progress()).task("texts", len(rows), "texts") as task:
        for number, chunk in enumerate(chunks):
            own = _read_chunk(model, rows, sites, folder, settings, number, chunk)
            for name, (total, count) in own.items():
                norms[name] = [norms[name][0] + total, norms[name][1] + count]
            task.advance(len(chunk))
    index = {
        "metadata": dict(metadata or {}),
        "norms": {name: total / count for name, (total, count) in norms.items()},
        "rows": chunks,
    }
    write_atomic(folder / INDEX, json.dumps(index).encode())
    return LayerStore(folder)


def read_share(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    folder: Path,
    settings: ReadSettings,
    share: tuple[int, int],
) -> None:
    """Read the k-th of n shares of the chunks, for `read_layers` to find, and say so in a file."""
    number, of = share
    chunks = _chunks(model, rows, sites, folder)
    for place in range(number, len(chunks), of):
        _read_chunk(model, rows, sites, folder, settings, place, chunks[place])
    write_atomic(share_file(folder, share), json.dumps({"chunks": len(chunks)}).encode())


def share_file(folder: Path, share: tuple[int, int]) -> Path:
    """The file that says that a share of the chunks is there."""
    return folder / f"share-{share[0] + 1}-of-{share[1]}.json"


def _chunks(
    model: TransformerBridge, rows: Sequence[TokenRow], sites: Sequence[Site], folder: Path
) -> list[list[int]]:
    first = read_rows(model, rows[:1], sites)
    per_token = sum(int(found.values.shape[1]) for found in first.values())
    check_room(folder, 2 * per_token * len(rows), "activations", "texts-*.safetensors")
    return [chunk.tolist() for chunk in length_chunks(rows, per_token)]


def _read_chunk(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    folder: Path,
    settings: ReadSettings,
    number: int,
    chunk: list[int],
) -> dict[str, tuple[float, int]]:
    """Return a chunk's token norms, reading and writing it first where it is not there."""
    path = _chunk_file(folder, number)
    own = _chunk_norms(path, chunk)
    if own is None:
        read = read_rows(model, [rows[i] for i in chunk], sites, max_tokens=2048)
        # Token norms need no more than a sample.
        measured = read if number % NORM_EVERY == 0 else {}
        own = {
            str(site): (mean_norm(found) * len(found.values), len(found.values))
            for site, found in measured.items()
        }
        _write_chunk(path, chunk, read, own, settings)
    return own


def _chunk_file(folder: Path, number: int) -> Path:
    return folder / f"texts-{number:05d}.safetensors"


def _chunk_norms(path: Path, rows: list[int]) -> dict[str, tuple[float, int]] | None:
    """Return the token norms of a chunk that was read before; None where it was not."""
    with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["chunk"])
        return record["norms"] if record["rows"] == rows else None
    return None


def _write_chunk(
    path: Path,
    rows: list[int],
    read: Mapping[Site, Activations],
    norms: Mapping[str, tuple[float, int]],
    settings: ReadSettings,
) -> None:
    dtype = getattr(torch, settings.storage)
    tensors = {
        str(site): pool(found, settings.pooling).to(dtype).contiguous()
        for site, found in read.items()
    }
    for site, vectors in tensors.items():
        if not bool(torch.isfinite(vectors).all()):
            raise OutputError(
                f"activations at {site} do not fit {settings.storage}; set reading.storage: "
                "bfloat16."
            )
    metadata = {"chunk": json.dumps({"rows": rows, "norms": norms})}
    write_atomic(path, lambda draft: save_file(tensors, draft, metadata=metadata))


def length_chunks(rows: Sequence[TokenRow], per_token: int) -> Iterator[np.ndarray]:
    """Yield the places of texts to read together, of like length, within the memory allowed.

    `per_token` numbers are kept for each token, over all sites.
    """
    most = max(1, CHUNK_BYTES // (4 * per_token))
    chunk: list[int] = []
    tokens = 0
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
        if chunk and (len(chunk) >= CHUNK_ROWS or tokens + len(rows[index]) > most):
            yield np.array(chunk)
            chunk, tokens = [], 0
        chunk.append(index)
        tokens += len(rows[index])
    if chunk:
        yield np.array(chunk)
