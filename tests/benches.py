"""Small files in the layouts of steering-bench and AxBench, made of words of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.texts import words

PROMPTS = '''"""All prompts."""

OURS: dict[str, tuple[str, str]] = {
    "kindly": ("You are kind.", "You are not kind."),
}
PERSONA_PROMPTS = {**OURS}


def make(name):
    raise AssertionError("this file is read and never run")
'''


def bench_samples(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Samples of steering-bench: the matching answer is (A) in half of them."""
    rng, samples = np.random.default_rng(seed), []
    for place in range(n):
        options = ("Yes", "No") if place % 2 else ("No", "Yes")
        prompt = f'Is it?\n"{words(rng, 2)}"\n\nChoices:\n(A):  {options[0]}\n(B):  {options[1]}'
        answers = ("(A)", "(B)") if options[0] == "Yes" else (" (B)", " (A)")
        sides = ({"prompt": prompt, "response": answer} for answer in answers)
        both = dict(zip(("positive", "negative"), sides, strict=True))
        samples.append({**both, "meta": None, "steering_token_index": -2})
    return samples


def write_bench(folder: Path, n: int = 16) -> Path:
    """Write a checkout of steering-bench: two datasets, one of refusals, the persona prompts."""
    data = folder / "assets" / "processed_datasets"
    refusal = bench_samples(4)
    for sample in refusal:
        sample["negative"]["prompt"] += "?"
    files = {
        "mwe_persona/kindly": bench_samples(n),
        "mwe_persona/boldly": bench_samples(n, seed=1),
        "refusal/refusal_train": refusal,
    }
    for name, samples in files.items():
        file = data / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(samples), encoding="utf-8")
    code = folder / "experiments" / "persona_prompts.py"
    code.parent.mkdir(parents=True)
    code.write_text(PROMPTS, encoding="utf-8")
    return folder


def write_axbench(folder: Path, n: int = 6) -> Path:
    """Write a folder of AxBench: two concepts of two genres, with one hard negative."""
    import pandas as pd

    rng = np.random.default_rng(0)

    def row(category: str, concept: int, genre: str, lead: str) -> dict[str, Any]:
        own = {"concept_id": concept, "concept_genre": genre, "category": category}
        text = {"input": f"{words(rng, 1)}?", "output": f"{lead} {words(rng, 2)}"}
        name = "EEEEE" if concept < 0 else f"concept {concept}"
        return {**text, "output_concept": name, **own, "dataset_category": "instruction"}

    genres = ("text", "code")
    train = [row("negative", -1, genre, "lo") for genre in genres for _ in range(n)]
    train += [
        row("positive", at, genre, "sun") for at, genre in enumerate(genres) for _ in range(n)
    ]
    evaluated = [
        row(category, at, genre, lead)
        for at, genre in enumerate(genres)
        for category, lead in (("positive", "sun"), ("negative", "lo"))
        for _ in range(n)
    ]
    evaluated.append(row("hard negative", 0, "text", "so"))
    for name, rows in (
        ("generate/train_data", train),
        ("inference/latent_eval_data", evaluated),
    ):
        file = folder / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(file, index=False)
    return folder
