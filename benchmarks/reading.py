"""Reading activations against a bare Hugging Face forward pass to the same layer."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch
from pairing import paired_ratio

from saesteer.data import datasets_folder, read_texts
from saesteer.models import Site, encode_texts, load_model, plain_model, resolve_target
from saesteer.models.reading import read_rows
from saesteer.models.tokens import TokenRow, pad_rows, padding_id


class _Stop(Exception):
    pass


def text_rows(model: Any, count: int, length: int) -> list[TokenRow]:
    """Return the first tokens of so many bundled texts."""
    texts = list(read_texts(datasets_folder() / "prose.jsonl", limit=count))
    rows = encode_texts(model.tokenizer, texts)
    return [row.part(0, length) for row in rows]


def against_bare(model: Any, rows: list[TokenRow], site: Site, rounds: int) -> list[str]:
    """Time reading against a bare pass to the same block; return what to print."""
    bare = plain_model(model)
    batch = pad_rows(rows, padding_id(model), bare.device, side="right")
    block = resolve_target(model, site).module

    def stop(*_: object) -> None:
        raise _Stop

    def reference() -> None:
        handle = block.register_forward_hook(stop)
        with torch.inference_mode(), contextlib.suppress(_Stop):
            bare(**batch.inputs, use_cache=False)
        handle.remove()

    ratio = paired_ratio(lambda: read_rows(model, rows, [site]), reference, rounds)
    tokens = int(batch.attention_mask.sum())
    return [
        f"reading {site}, {tokens} tokens in {len(rows)} rows, {bare.device}, "
        f"{str(bare.dtype).removeprefix('torch.')}",
        f"  saesteer     {tokens / ratio.candidate:9.0f} tokens/s",
        f"  Hugging Face {tokens / ratio.reference:9.0f} tokens/s",
        f"  ratio {ratio.median:.3f} (rounds {ratio.low:.3f} to {ratio.high:.3f}); wanted >= 0.80",
    ]


def main() -> None:
    """Print tokens per second of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    rows = text_rows(model, options.rows, options.length)
    print(f"{options.threads} threads")
    print(*against_bare(model, rows, Site(options.layer), options.rounds), sep="\n")


if __name__ == "__main__":
    main()
