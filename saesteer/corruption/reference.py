"""What programs are fitted on: plain texts, passes over them, and files of what was fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from saesteer.data import read_pairs
from saesteer.data.bundled import bundled_pair_names, datasets_folder
from saesteer.data.texts import read_texts
from saesteer.models import plain_model
from saesteer.models.tokens import (
    TokenRow,
    encode_texts,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.utils.errors import OutputError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LONGEST = 128


def reference_texts(source: str, *, limit: int | None = None) -> list[str]:
    """Return texts to fit on.

    Args:
        source: "bundled" for the prose and the statements of the persona pairs that come with
            saesteer, or a file as `read_texts` takes it.
        limit: The most texts.

    Raises:
        DataError: The file cannot be used.
    """
    if source != "bundled":
        return list(read_texts(Path(source), limit=limit))
    texts = list(read_texts(datasets_folder() / "prose.jsonl"))
    for name in bundled_pair_names():
        pairs = read_pairs(name)
        texts += [*pairs.positives, *pairs.negatives]
    # Every k-th, so that a smaller choice still has some of each set.
    step = 1 if limit is None else max(1, len(texts) // limit)
    return texts[::step][:limit]


def text_rows(model: TransformerBridge, texts: Sequence[str]) -> list[TokenRow]:
    """Tokenise texts, cut after 128 tokens."""
    assert model.tokenizer is not None
    rows = encode_texts(model.tokenizer, texts)
    return [TokenRow(row.ids[:LONGEST], row.kept[:LONGEST]) for row in rows if row.ids]


def kept_passes(
    model: TransformerBridge, rows: Sequence[TokenRow], *, max_tokens: int = 4096
) -> Iterator[tuple[Bool[Tensor, "row pos"], Callable[[], Any]]]:
    """Yield, batch by batch, the mask of the tokens that count and what runs the plain model.

    The model runs without its unembedding.
    """
    plain: Any = plain_model(model)
    device = input_device(plain)
    for index in length_sorted_batches(rows, max_tokens=max_tokens):
        batch = pad_rows([rows[i] for i in index], padding_id(model), device, side="right")

        def forward(batch: Any = batch) -> None:
            with torch.inference_mode():
                plain.base_model(**batch.inputs, use_cache=False)

        yield batch.span, forward


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        OutputError: The file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"{path} is damaged ({str(error)[:100]}); delete it and run the same command again."
        ) from error
