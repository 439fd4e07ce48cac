"""The world in which things are tried; `make torture` says by the environment how much."""

from __future__ import annotations

import os

import pytest

from tests.experiments import conftest as experiments
from tests.torture.world import World

small_data, small_in = experiments.small_data, experiments.small_in


@pytest.fixture(scope="module")
def world(small_in, tiny_model_folder, mirror_sae, tiny_gguf, tmp_path_factory) -> World:
    """Tiny models, data and settings."""
    return World(
        root=tmp_path_factory.mktemp("torture"),
        seed=int(os.environ.get("TORTURE_SEED", "0")),
        small=small_in,
        model=tiny_model_folder("llama"),
        sae=mirror_sae(),
        gguf=tiny_gguf,
    )
