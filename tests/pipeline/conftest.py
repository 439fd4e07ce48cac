"""A whole run on a tiny model, and copies of it to be damaged."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import plan_run


@pytest.fixture
def settings(tiny_settings) -> dict[str, Any]:
    return tiny_settings("llama")


@pytest.fixture(scope="session")
def whole(tiny_settings):
    """A run that nobody cut off."""
    return run_experiment(RunConfig(**tiny_settings("llama")))


@pytest.fixture
def copy_of_whole(whole, settings):
    """A finished run of its own, to be damaged, with its settings."""
    target = plan_run(RunConfig(**settings)).folder
    shutil.copytree(whole.folder.path, target)
    return RunConfig(**settings), target
