"""What the benchmark asks for, with repeng, whose vector is the first principal component."""

from __future__ import annotations

from typing import Any

import numpy as np
from repeng import ControlModel, ControlVector, DatasetEntry
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import LAYER, exactly, serve


def load(folder: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return ControlModel(model, [LAYER]), tokenizer


def as_vector(model: Any, raw: list[float]) -> Any:
    return ControlVector("llama", {LAYER: np.array(raw, dtype=np.float32)})


def fit(model: Any, pairs: list[tuple[str, str]]) -> list[float]:
    model, tokenizer = model
    bos = tokenizer.bos_token
    entries = [DatasetEntry(bos + positive, bos + negative) for positive, negative in pairs]
    vector = ControlVector.train(model, tokenizer, entries, hidden_layers=[LAYER])
    return vector.directions[LAYER].tolist()


def generate(
    model: Any, prompts: list[str], vector: Any, strength: float, tokens: int
) -> list[list[int]]:
    model, tokenizer = model
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    model.set_control(vector, strength)
    try:
        return model.generate(**inputs, **exactly(tokens)).tolist()
    finally:
        model.reset()


def strengths(
    model: Any, prompt: str, vector: Any, strengths: list[float], tokens: int
) -> list[list[int]]:
    return [generate(model, [prompt], vector, x, tokens)[0] for x in strengths]


def export(model: Any, vector: Any, path: str) -> None:
    vector.export_gguf(path)


if __name__ == "__main__":
    serve(globals())
