"""Steered generation against unsteered Hugging Face `generate` at the same batch size."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from pairing import paired_ratio

from saesteer.data import read_questions
from saesteer.models import Site, chat_prompt, encode_texts, load_model, model_info, plain_model
from saesteer.models.tokens import TokenBatch, pad_rows, padding_id
from saesteer.steering import SteeringVector, steer


def a_vector(model: Any, layer: int) -> SteeringVector:
    """Return a direction drawn at random, for a strength in units of 100."""
    return SteeringVector.from_raw(
        torch.randn(int(model.cfg.d_model), generator=torch.Generator().manual_seed(0)),
        site=Site(layer),
        model="random",
        model_fingerprint=model_info(model).fingerprint,
        residual_norm=100.0,
    )


def prompt_batch(model: Any, rows: int) -> TokenBatch:
    """Return so many neutral questions as chat prompts on the model's device."""
    questions = [*read_questions("neutral_questions"), *read_questions("open_questions")]
    asked = [questions[i % len(questions)] for i in range(rows)]
    prompts = [chat_prompt(model.tokenizer, question) for question in asked]
    device = plain_model(model).device
    return pad_rows(encode_texts(model.tokenizer, prompts), padding_id(model), device)


def write(model: Any, tokens: TokenBatch, length: int) -> torch.Tensor:
    """Return the ids of prompts and exactly `length` likeliest tokens."""
    bare: Any = plain_model(model)
    with torch.inference_mode():
        return bare.generate(
            **tokens.inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False
        )


def against_plain(
    model: Any, vector: SteeringVector, rows: int, length: int, rounds: int
) -> list[str]:
    """Time steered generation against unsteered; return what to print."""
    tokens = prompt_batch(model, rows)

    def steered() -> None:
        with steer(model, vector, 0.1):
            write(model, tokens, length)

    ratio = paired_ratio(steered, lambda: write(model, tokens, length), rounds)
    bare = plain_model(model)
    return [
        f"generation, {rows} rows, {length} new tokens, {bare.device}, "
        f"{str(bare.dtype).removeprefix('torch.')}",
        f"  steered      {rows * length / ratio.candidate:9.1f} tokens/s",
        f"  Hugging Face {rows * length / ratio.reference:9.1f} tokens/s",
        f"  ratio {ratio.median:.3f} (rounds {ratio.low:.3f} to {ratio.high:.3f}); wanted >= 0.95",
    ]


def main() -> None:
    """Print tokens per second of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    vector = a_vector(model, options.layer)
    print(f"{options.threads} threads")
    for rows in options.rows:
        lines = against_plain(model, vector, rows, options.new_tokens, options.rounds)
        print(*lines, sep="\n")


if __name__ == "__main__":
    main()
