"""One pass over the texts that reads every layer and keeps one vector per text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.pooling import mean_norm, pool
from saesteer.models.reading import Activations, read_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import TokenRow, encode_statements
from saesteer.probes.settings import ReadPosition, ReadSettings
from saesteer.probes.store import LayerStore, StoreWriter
from saesteer.utils.errors import DataError, SiteError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from saesteer.data.labelled import LabelledText

CHUNK_ROWS = 256
# What a chunk's activations may take in memory at all sites together, before they are pooled.
CHUNK_BYTES = 400 * 2**20
# Every so many chunks the token norms are measured; they need no more than a sample.
NORM_EVERY = 8


def probe_sites(n_layers: int, settings: ReadSettings) -> list[Site]:
    """Return the sites to read, in order of depth.

    Raises:
        SiteError: A layer is past the model's last one.
    """
    layers = range(n_layers) if settings.layers is None else sorted(settings.layers)
    for layer in layers:
        if layer >= n_layers:
            raise SiteError(
                f"reading.layers names block {layer} and the model has blocks 0 to {n_layers - 1}; "
                "choose among them."
            )
    return [Site(layer, settings.hook) for layer in layers]


def encode_labelled(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    settings: ReadSettings,
    *,
    prepend_bos: bool | None = None,
    max_length: int | None = None,
) -> list[TokenRow]:
    """Tokenise labelled texts; kept are the tokens that are read.

    Args:
        tokenizer: The model's tokenizer.
        texts: The texts.
        settings: Positions, and the words around each text.
        prepend_bos: As in `encode_texts`.
        max_length: The model's context.

    Raises:
        DataError: A text has no token, is longer than the context, or lacks the labelled span.
    """
    spans: list[str] = []
    for text in texts:
        if settings.positions == "span" and text.span is None:
            raise DataError(
                f"{text.place or text.id}: the text has no span and reading.positions is 'span'; "
                "give it one, or use 'mean'."
            )
        part = text.span if settings.positions == "span" else None
        spans.append(part or text.text)

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


def read_layers(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    path: Path,
    *,
    positions: ReadPosition = "mean",
    storage: str = "float16",
    metadata: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> LayerStore:
    """Read every site in one pass over the rows, pooling as it goes, into a file.

    A reading that was cut off goes on where it stopped.

    Args:
        model: A model from `load_model`.
        rows: Tokenised texts from `encode_labelled`.
        sites: Where to read.
        path: The file to write.
        positions: How a text's read tokens become one vector: the last one, or else their mean.
        storage: "float16" or "bfloat16".
        metadata: Kept in the file.
        progress: Where to show progress.

    Raises:
        SaesteerError: As in `read_rows`; OutputError where the file cannot be written.
    """
    first = read_rows(model, rows[:1], sites)
    width = int(first[sites[0]].values.shape[1])
    if any(int(found.values.shape[1]) != width for found in first.values()):
        raise SiteError("the sites differ in width; read those of one kind.")
    chunks = list(length_chunks(rows, len(sites) * width))
    with (
        closing(StoreWriter(path, sites, len(rows), width, storage, metadata)) as writer,
        (progress or Progress()).task("texts", len(rows), "texts") as task,
    ):
        task.advance(sum(len(chunk) for chunk in chunks[: writer.done]))
        for number in range(writer.done, len(chunks)):
            chunk = chunks[number]
            read = read_rows(model, [rows[i] for i in chunk], sites, max_tokens=2048)
            norms = None
            if number % NORM_EVERY == 0:
                norms = {s: (mean_norm(a) * len(a.values), len(a.values)) for s, a in read.items()}
            writer.write(chunk, {s: pooled(a, positions) for s, a in read.items()}, norms)
            task.advance(len(chunk))
        return writer.finish()


def pooled(activations: Activations, positions: ReadPosition) -> Float[Tensor, "text d_model"]:
    """Return one float32 vector per text."""
    return pool(activations, "last" if positions == "last" else "mean")


def length_chunks(rows: Sequence[TokenRow], per_token: int) -> Iterator[np.ndarray]:
    """Yield the places of texts to read together, of like length, within the memory allowed.

    Args:
        rows: The rows.
        per_token: Numbers kept for each token, over all sites.
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


def read_tokens(
    model: TransformerBridge, rows: Sequence[TokenRow], sites: Sequence[Site]
) -> dict[Site, list[Float[np.ndarray, "token d_model"]]]:
    """Return the vectors of every kept token of a few rows, in float32."""
    found = read_rows(model, rows, sites)
    return {
        site: [kept.text(i).to(torch.float32).numpy() for i in range(kept.n_texts)]
        for site, kept in found.items()
    }
