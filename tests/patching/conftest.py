"""What the tests of patching share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["gpt2", "gemma3"])
def arch(request) -> str:
    """Run the test on the two least alike: fused biased projections, and norms behind them."""
    return request.param
