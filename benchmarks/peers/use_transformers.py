"""What the benchmark asks for, with transformers and torch alone: unsteered, and by hand."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import LAYER, exactly, serve


def load(folder: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


def as_vector(model: Any, raw: list[float]) -> Any:
    return torch.tensor(raw)


def fit(model: Any, pairs: list[tuple[str, str]]) -> list[float]:
    model, tokenizer = model
    last = []
    for side in zip(*pairs, strict=True):
        texts = [tokenizer.bos_token + text for text in side]
        for start in range(0, len(texts), 32):
            inputs = tokenizer(texts[start : start + 32], padding=True, return_tensors="pt")
            with torch.no_grad():
                hidden = model.model(**inputs, output_hidden_states=True).hidden_states
            last.append(hidden[LAYER + 1][:, -1])
    positive, negative = torch.cat(last).chunk(2)
    return (positive - negative).mean(dim=0).tolist()


def generate(
    model: Any, prompts: list[str], vector: Any, strength: float, tokens: int
) -> list[list[int]]:
    model, tokenizer = model
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")

    def add(module: Any, given: Any, output: Any) -> Any:
        return output + strength * vector

    handle = model.model.layers[LAYER].register_forward_hook(add)
    try:
        return model.generate(**inputs, **exactly(tokens)).tolist()
    finally:
        handle.remove()


def strengths(
    model: Any, prompt: str, vector: Any, strengths: list[float], tokens: int
) -> list[list[int]]:
    model, tokenizer = model
    inputs = tokenizer([prompt] * len(strengths), return_tensors="pt")
    rows = torch.tensor(strengths)[:, None, None] * vector

    def add(module: Any, given: Any, output: Any) -> Any:
        return output + rows

    handle = model.model.layers[LAYER].register_forward_hook(add)
    try:
        return model.generate(**inputs, **exactly(tokens)).tolist()
    finally:
        handle.remove()


def unsteered(model: Any, prompts: list[str], tokens: int) -> list[list[int]]:
    """Return what the model writes of itself: what steering is held against."""
    model, tokenizer = model
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    return model.generate(**inputs, **exactly(tokens)).tolist()


if __name__ == "__main__":
    serve(globals())
