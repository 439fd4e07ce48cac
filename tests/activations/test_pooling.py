"""From tokens to one vector per text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import Site
from saesteer.models.pooling import mean_norm, pool
from saesteer.models.reading import Activations
from saesteer.utils.errors import ConfigError

LENGTHS = (3, 1, 5)


@pytest.fixture
def activations():
    values = torch.randn(sum(LENGTHS), 4, generator=torch.Generator().manual_seed(0))
    return Activations(values, torch.tensor([0, 3, 4, 9]), Site(0))


def test_the_mean_and_the_last_token_by_hand(activations):
    values = activations.values.numpy()
    texts = np.split(values, [3, 4])
    np.testing.assert_allclose(pool(activations), [t.mean(0) for t in texts], rtol=1e-5)
    np.testing.assert_array_equal(pool(activations, "last"), [t[-1] for t in texts])


def test_the_mean_norm_is_over_tokens_not_texts(activations):
    wanted = np.linalg.norm(activations.values.numpy(), axis=1).mean()
    assert mean_norm(activations) == pytest.approx(wanted, rel=1e-6)


def test_an_unknown_way_to_pool_is_a_sentence(activations):
    unknown: Any = "max"
    with pytest.raises(ConfigError, match=r"pooling 'max' is unknown; use 'mean' or 'last'\."):
        pool(activations, unknown)
