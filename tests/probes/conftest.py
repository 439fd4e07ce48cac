"""Probe runs on tiny models: texts whose first words tell their class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.steering.conftest import make_vector, vector_on  # noqa: F401
from tests.texts import words, write_lines

CLASSES = {"negative": "grim bad", "neutral": "plain even", "positive": "glad nice"}


@pytest.fixture(scope="session")
def probe_settings(tmp_path_factory, tiny_model_folder) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a probe run's settings: seconds on a tiny model.

    90 texts in three classes; every class has words of its own.
    """
    data = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)

    def write(name: str, n: int) -> str:
        rows = [
            {"text": f"{words(rng, 1)} {marks} {words(rng, int(rng.integers(1, 3)))}", "label": one}
            for _ in range(n)
            for one, marks in CLASSES.items()
        ]
        return write_lines(data / name, rows)

    texts, checks = write("texts.jsonl", 30), write("checks.jsonl", 4)

    def make(arch: str = "llama", **more: Any) -> dict[str, Any]:
        settings = {
            "name": "tiny",
            "model": {"name": str(tiny_model_folder(arch)), "dtype": "float32", "device": "cpu"},
            "data": {"source": texts, "test": 0.3, "judge": 0.0, "near_duplicate": None},
            "fit": {"c": [0.01, 0.1], "resamples": 50},
            "checks": checks,
            "folder": str(tmp_path_factory.mktemp("runs")),
        }
        for key, value in more.items():
            inner = settings.get(key)
            settings[key] = {**inner, **value} if isinstance(inner, dict) else value
        return settings

    return make


@pytest.fixture(scope="session")
def finished_run(probe_settings):
    """A finished run on the tiny Llama."""
    from saesteer.experiments.probe.config import ProbeConfig
    from saesteer.experiments.registry import run_experiment
    from saesteer.utils.settings import parse_config

    return run_experiment(parse_config(probe_settings(), kind=ProbeConfig, place="test"))
