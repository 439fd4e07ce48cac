"""A made-up kind of experiment that needs no model, and settings around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import Field

from saesteer.agent import experiments
from saesteer.agent.settings import AgentConfig
from saesteer.experiments.config import ExperimentConfig
from saesteer.utils.errors import DataError
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import Source


class PlantConfig(ExperimentConfig):
    """Measures how far layers are from the planted one."""

    kind: ClassVar[str] = "plant"
    layers: list[int] = Field(default=[0])
    effort: int = 1
    source: Source = "bundled"


@pytest.fixture
def runs() -> list[PlantConfig]:
    """What was really run, in order."""
    return []


@pytest.fixture
def plant(monkeypatch, runs) -> Callable[..., Any]:
    """Stand-in for the kind "corrupt": layer 7 costs most."""

    def run(config: PlantConfig, *_: Any) -> Any:
        runs.append(config)
        if 13 in config.layers:
            raise DataError("layer 13 brings bad luck; leave it out.")
        rows = [
            {"layer": layer, "loss": 5.0 - abs(layer - 7) / 10 + 0.001 * config.effort}
            for layer in config.layers
        ]
        folder = Path(config.folder) / f"plant-{len(runs)}"
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"rows": rows, "effort": config.effort}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return SimpleNamespace(folder=RunFolder(folder))

    kind = SimpleNamespace(Config=PlantConfig, about="how far from the planted layer")
    monkeypatch.setattr(experiments, "experiment_named", lambda name: kind)
    monkeypatch.setattr(experiments, "run_experiment", run)
    return run


@pytest.fixture
def settings(tmp_path) -> Callable[..., AgentConfig]:
    """Return a function that makes an agent's settings; keywords replace its parts."""

    def make(**changes: Any) -> AgentConfig:
        made: dict[str, Any] = {
            "name": "test",
            "goal": "Which layer costs most?",
            "experiments": {"corrupt": {}},
            "search": {
                "kind": "corrupt",
                "parameters": {"layers": list(range(12))},
                "batch": "layers",
                "metric": ["rows", "layer={candidate}", "loss"],
                "fidelity": "effort",
                "rungs": [1, 4],
                "question": "the layer that costs most",
            },
            "folder": str(tmp_path / "runs"),
        }
        return AgentConfig(**{**made, **changes})

    return make
