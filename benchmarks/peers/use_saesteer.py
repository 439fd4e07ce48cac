"""What the benchmark asks for, with saesteer."""

from __future__ import annotations

from typing import Any

from worker import LAYER, exactly, serve

import saesteer as ss
from saesteer.steering.gguf_vectors import export_gguf

SITE = f"blocks.{LAYER}.hook_resid_post"


def load(folder: str) -> Any:
    return ss.load_model(folder, device="cpu", dtype="float32")


def as_vector(model: Any, raw: list[float]) -> Any:
    return ss.SteeringVector.from_raw(raw, site=SITE, model="smollm2", positions="all")


def fit(model: Any, pairs: list[tuple[str, str]]) -> list[float]:
    last = ss.ReadingSettings(positions="last", request=None)
    means = ss.DifferenceInMeans().fit(model, ss.pairs_from(pairs), site=SITE, reading=last)
    return means.vector_.raw.tolist()


def fit_pca(model: Any, pairs: list[tuple[str, str]]) -> list[float]:
    """Return the vector that repeng makes, by our own arithmetic."""
    last = ss.ReadingSettings(positions="last", request=None)
    fitted = ss.PCA("pca_diff").fit(model, ss.pairs_from(pairs), site=SITE, reading=last)
    return fitted.vector_.raw.tolist()


def generate(
    model: Any, prompts: list[str], vector: Any, strength: float, tokens: int
) -> list[list[int]]:
    inputs = model.tokenizer(prompts, padding=True, return_tensors="pt")
    with ss.steer(model, vector, strength * vector.norm, "raw"):
        bare: Any = ss.plain_model(model)
        return bare.generate(**inputs, **exactly(tokens)).tolist()


def strengths(
    model: Any, prompt: str, vector: Any, strengths: list[float], tokens: int
) -> list[list[int]]:
    inputs = model.tokenizer([prompt] * len(strengths), return_tensors="pt")
    with ss.steer(model, vector, [x * vector.norm for x in strengths], "raw"):
        bare: Any = ss.plain_model(model)
        return bare.generate(**inputs, **exactly(tokens)).tolist()


def export(model: Any, vector: Any, path: str) -> None:
    export_gguf(vector, path)


if __name__ == "__main__":
    serve(globals())
