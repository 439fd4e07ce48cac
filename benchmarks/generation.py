"""Steered generation against unsteered Hugging Face `generate` at the same batch size."""

from __future__ import annotations

import argparse

import torch
from pairing import paired_ratio

from saesteer.data import read_questions
from saesteer.models import Site, chat_prompt, encode_texts, load_model, model_info, plain_model
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.steering import SteeringVector, steer


def main() -> None:
    """Print tokens per second of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    bare = plain_model(model)
    vector = SteeringVector.from_raw(
        torch.randn(int(model.cfg.d_model), generator=torch.Generator().manual_seed(0)),
        site=Site(options.layer),
        model=options.model,
        model_fingerprint=model_info(model).fingerprint,
        residual_norm=100.0,
    )
    questions = read_questions("neutral_questions")
    for rows in options.rows:
        prompts = [chat_prompt(model.tokenizer, question) for question in questions[:rows]]
        tokens = pad_rows(encode_texts(model.tokenizer, prompts), padding_id(model), bare.device)
        length = options.new_tokens

        def plain(tokens=tokens, length=length) -> None:
            with torch.inference_mode():
                bare.generate(  # type: ignore[operator]
                    **tokens.inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False
                )

        def steered(plain=plain) -> None:
            with steer(model, vector, 0.1):
                plain()

        ratio = paired_ratio(steered, plain, options.rounds)
        print(
            f"generation, {rows} rows, {length} new tokens, {options.threads} threads, "
            f"{str(bare.dtype).removeprefix('torch.')}"
        )
        print(f"  steered      {rows * length / ratio.candidate:9.1f} tokens/s")
        print(f"  Hugging Face {rows * length / ratio.reference:9.1f} tokens/s")
        low, high = ratio.low, ratio.high
        print(f"  ratio {ratio.median:.3f} (rounds {low:.3f} to {high:.3f}); wanted >= 0.95")


if __name__ == "__main__":
    main()
