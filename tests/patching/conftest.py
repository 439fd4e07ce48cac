"""What the tests of patching share."""

from __future__ import annotations

import pytest

# The two least alike: fused biased projections, and norms behind them.
UNLIKE = pytest.mark.parametrize("arch", ["gpt2", "gemma3"])


@pytest.fixture
def arch() -> str:
    """The architecture of a test that does not ask for several with `UNLIKE`."""
    return "gemma3"
