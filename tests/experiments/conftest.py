"""Every kind of experiment, so small that a run takes seconds on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.texts import words, write_lines


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> dict[str, str]:
    """Files of labelled texts, a prompt pair, a corpus and neutral answers."""
    data = tmp_path_factory.mktemp("small-data")
    rng = np.random.default_rng(0)
    texts = ("glad words of joy", "grim words of woe")
    sides = {"clean": ("The cat sat on the", " m"), "corrupted": ("The dog ran on the", " h")}
    pair = {side: {"question": q, "answer": a} for side, (q, a) in sides.items()}
    records = {
        "texts": [{"text": f"{texts[i % 2]} {i}", "label": "ab"[i % 2]} for i in range(40)],
        "prompts": [pair],
        "corpus": [{"text": words(rng, 20)} for _ in range(30)],
        "answers": [{"question": f"What {i}?", "answer": words(rng, 14)} for i in range(6)],
    }
    return {name: write_lines(data / f"{name}.jsonl", lines) for name, lines in records.items()}


@pytest.fixture(scope="session")
def small_in(tiny_settings, small_data) -> Callable[[str, Path], dict[str, Any]]:
    """Return a function that gives small settings of a kind of experiment, in a folder."""
    base = tiny_settings("llama")
    shared = {"name": "tiny", "model": base["model"]}
    own: dict[str, dict[str, Any]] = {
        "steer": {**base, **shared, "completions": {**base["completions"], "n_questions": 1}},
        "probe": {
            **shared,
            "data": {"source": small_data["texts"], "judge": 0.2, "near_duplicate": None},
            "fit": {"c": [0.1], "resamples": 0, "control": False},
        },
        "patch": {
            **shared,
            "pairs": {"source": small_data["prompts"]},
            "components": ["z"],
            "path": {},
            "attention": None,
            "resamples": 10,
        },
        "corrupt": {
            **shared,
            "tasks": {"source": ["capitals"], "max_questions": 1},
            "programs": ["skip 0"],
            "completions": {"prompts": ["The cat"], "programs": ["skip 0"], "max_new_tokens": 2},
        },
        "compare": {
            **shared,
            "sae": base["sae"],
            "personas": [base["pairs"]["source"]],
            "splits": {"train": 8, "validation": 2, "test": 4, "judge": 10},
            "methods": ["difference_in_means", "pca"],
            "headline": "pca",
            "seeds": [0],
            "objective": {"own_words": 0},
            "evaluation": {"kl_targets": [0.05], "headline_kl_target": 0.05}
            | {"multiples": [-1, 0, 1], "neutral": small_data["answers"], "neutral_answers": 3},
            "random": {"directions": 1, "features": 0},
            "writing": {"n_questions": 0, "kl_targets": [0.05]},
            "side_effects": {"choices": 0, "n_prose": 0, "pairs": 0},
        },
        "train_sae": {
            **shared,
            "site": "blocks.1.hook_resid_post",
            "corpus": [{"path": small_data["corpus"]}],
            "held_out": 0.2,
            "context": 24,
            "d_sae": 64,
            "k": 16,
            "batch": 32,
            "epochs": 3,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
        },
    }
    return lambda kind, folder: json.loads(json.dumps({**own[kind], "folder": str(folder)}))


@pytest.fixture
def small(small_in, tmp_path) -> Callable[[str], dict[str, Any]]:
    """Return a function that gives small settings of a kind, in the test's own folder."""
    return lambda kind: small_in(kind, tmp_path / "runs")


@pytest.fixture
def config_file(small, tmp_path) -> Callable[..., Path]:
    """Return a function that writes a kind's small settings to a file; JSON is YAML."""

    def write(kind: str, **changes: Any) -> Path:
        file = tmp_path / f"{kind}.yaml"
        file.write_text(json.dumps({**small(kind), **changes}), encoding="utf-8")
        return file

    return write
