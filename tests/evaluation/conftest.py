"""One tiny model for the room's tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def tiny_llama(tiny_model):
    """A tiny random Llama with a chat template."""
    return tiny_model("llama")
