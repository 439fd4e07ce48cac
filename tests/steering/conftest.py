"""Vectors and tokens for the shared tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saesteer.models.loading import load_model, model_info
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.steering.engines.paged import PagedEngine
from saesteer.utils.errors import ModelError


@pytest.fixture(scope="session")
def llama(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="session")
def bf16_llama(tiny_model_folder):
    return load_model(tiny_model_folder("llama"), device="cpu", dtype="bfloat16")


@pytest.fixture(scope="session")
def second_llama(tiny_model_folder):
    """The same weights once more, in other modules."""
    return load_model(tiny_model_folder("llama"), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def paged() -> Callable[..., PagedEngine]:
    """Return what makes the engine paged; the test is skipped where transformers is too old."""

    def make(*given: Any) -> PagedEngine:
        try:
            return PagedEngine(*given)
        except ModelError as error:
            pytest.skip(str(error))

    return make


@pytest.fixture(scope="session")
def random_ids():
    """Return a function that makes random tokens, none of them special."""

    def make(batch: int, width: int, seed: int = 0):
        return torch.randint(8, 300, (batch, width), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def make_vector(tiny_model):
    """Return a function that makes a random vector of a shared tiny model."""

    def make(
        seed: int = 0, site: str = "blocks.1.hook_resid_post", arch: str = "llama", **fields: Any
    ) -> SteeringVector:
        raw = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        defaults = {
            "model": "tiny",
            "model_fingerprint": model_info(tiny_model(arch)).fingerprint,
            "residual_norm": 10.0,
            "max_act": 4.0,
            "features": (SteeredFeature(3, 0.5, 0, "cats"), SteeredFeature(7, -1.0, 1)),
            "name": f"v{seed}",
        }
        return SteeringVector.from_raw(raw, site=site, **(defaults | fields))

    return make


@pytest.fixture(scope="session")
def vector_on(make_vector):
    """Return a function that makes one as a probe does, for all positions: arch, layer, seed."""

    def make(arch: str = "llama", layer: int = 1, seed: int = 0, **fields: Any) -> SteeringVector:
        probed = {
            "residual_norm": 5.0,
            "max_act": None,
            "features": (),
            "positions": "all",
            "provenance": {
                "towards": "positive",
                "away": "negative",
                "class_alphas": {"negative": -1.0, "neutral": 0.5, "positive": 3.0},
            },
        }
        return make_vector(seed, f"blocks.{layer}.hook_resid_post", arch, **(probed | fields))

    return make
