"""Reading activations against a bare Hugging Face forward pass to the same layer."""

from __future__ import annotations

import argparse
import contextlib

import torch
from pairing import paired_ratio

from saesteer.data import datasets_folder, read_texts
from saesteer.models import Site, encode_texts, load_model, plain_model, resolve_target
from saesteer.models.reading import read_rows
from saesteer.models.tokens import TokenRow, pad_rows, padding_id


class _Stop(Exception):
    pass


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
    texts = list(read_texts(datasets_folder() / "prose.jsonl", limit=options.rows))
    rows = [
        TokenRow(row.ids[: options.length], row.kept[: options.length])
        for row in encode_texts(model.tokenizer, texts)
    ]
    bare = plain_model(model)
    batch = pad_rows(rows, padding_id(model), bare.device, side="right")
    block = resolve_target(model, Site(options.layer)).module

    def stop(*_: object) -> None:
        raise _Stop

    def reference() -> None:
        handle = block.register_forward_hook(stop)
        with torch.inference_mode(), contextlib.suppress(_Stop):
            bare(**batch.inputs, use_cache=False)
        handle.remove()

    site = Site(options.layer)
    ratio = paired_ratio(lambda: read_rows(model, rows, [site]), reference, options.rounds)
    tokens = int(batch.attention_mask.sum())
    print(
        f"reading {site}, {tokens} tokens in {len(rows)} rows, {options.threads} threads, "
        f"{str(bare.dtype).removeprefix('torch.')}"
    )
    print(f"  saesteer     {tokens / ratio.candidate:9.0f} tokens/s")
    print(f"  Hugging Face {tokens / ratio.reference:9.0f} tokens/s")
    low, high = ratio.low, ratio.high
    print(f"  ratio {ratio.median:.3f} (rounds {low:.3f} to {high:.3f}); wanted >= 0.80")


if __name__ == "__main__":
    main()
