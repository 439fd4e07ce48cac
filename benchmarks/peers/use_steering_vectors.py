"""What the benchmark asks for, with steering-vectors."""

from __future__ import annotations

from typing import Any

import torch
from steering_vectors import SteeringVector, train_steering_vector
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import LAYER, exactly, serve


def load(folder: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


def as_vector(model: Any, raw: list[float]) -> Any:
    return SteeringVector({LAYER: torch.tensor(raw)})


def fit(model: Any, pairs: list[tuple[str, str]]) -> list[float]:
    model, tokenizer = model
    bos = tokenizer.bos_token
    texts = [(bos + positive, bos + negative) for positive, negative in pairs]
    # Its default is a batch of 1, which takes several times as long.
    vector = train_steering_vector(model, tokenizer, texts, layers=[LAYER], batch_size=32)
    return vector.layer_activations[LAYER].tolist()


def generate(
    model: Any, prompts: list[str], vector: Any, strength: float, tokens: int
) -> list[list[int]]:
    model, tokenizer = model
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    with vector.apply(model, multiplier=strength):
        return model.generate(**inputs, **exactly(tokens)).tolist()


def strengths(
    model: Any, prompt: str, vector: Any, strengths: list[float], tokens: int
) -> list[list[int]]:
    return [generate(model, [prompt], vector, x, tokens)[0] for x in strengths]


if __name__ == "__main__":
    serve(globals())
