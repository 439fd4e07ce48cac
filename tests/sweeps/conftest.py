"""Tiny sweeps: files of a tiny run, and trials that are made up where nothing need be computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saesteer.sweeps.study import create_study
from saesteer.sweeps.sweep import Sweep
from saesteer.sweeps.sweep_file import read_sweep

COMMAND = ["${env}", "saesteer", "run", "{base}", "${args_no_hyphens}"]
GRID = {
    "selection.criterion": {"values": ["mean_difference", "auroc"]},
    "selection.n_features": {"values": [8, 12, 16]},
}


@pytest.fixture
def base_file(tiny_settings, tmp_path) -> Path:
    """The settings file of a tiny run; JSON is YAML."""
    file = tmp_path / "base.yaml"
    file.write_text(json.dumps({**tiny_settings("llama"), "folder": str(tmp_path / "runs")}))
    return file


@pytest.fixture
def sweep_file(base_file, tmp_path) -> Callable[..., Path]:
    """Return a function that writes a sweep file over the tiny run; None leaves a field out."""

    def write(**changes: Any) -> Path:
        fields: dict[str, Any] = {
            "command": [word.replace("{base}", str(base_file)) for word in COMMAND],
            "method": "grid",
            "metric": {"name": "effect", "goal": "maximize"},
            "parameters": GRID,
        }
        fields = {k: v for k, v in {**fields, **changes}.items() if v is not None}
        file = tmp_path / "tiny-sweep.yaml"
        file.write_text(json.dumps(fields))
        return file

    return write


@pytest.fixture
def sweep_of(sweep_file) -> Callable[..., Sweep]:
    """Return a function that gives a checked sweep; `options` go to `read_sweep`."""

    def make(options: dict[str, Any] | None = None, **changes: Any) -> Sweep:
        return read_sweep(sweep_file(**changes), **(options or {}))

    return make


@pytest.fixture
def made_up(monkeypatch) -> list[dict[str, Any]]:
    """Let trials answer from a formula, and collect their parameters in order."""
    seen: list[dict[str, Any]] = []

    def measure(self: Sweep, values: dict[str, Any], **rest: Any) -> Any:
        seen.append(dict(values))
        n = float(values.get("selection.n_features", 8))
        effect = -((n - 12) ** 2) + (values.get("selection.criterion") == "auroc")
        rest["watch"](effect)
        return Path("runs") / self.key(values), {"effect": effect, "kl": 0.1, "kl_target": 0.1}

    monkeypatch.setattr(Sweep, "measure", measure)
    return seen


TWO = {"selection.n_features": {"values": [8, 16]}}
FOUR = {**TWO, "selection.criterion": {"values": ["mean_difference", "auroc"]}}


def started(sweep, place=None):
    """A study of the sweep with all its trials waiting."""
    study = create_study(sweep, place)
    study.enqueue(sweep.trials())
    return study


def results(study):
    """What a study's trials found."""
    return {row.key: (row.values, row.value, row.numbers) for row in study.rows()}
