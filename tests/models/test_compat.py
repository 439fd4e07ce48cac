"""What depends on another library's version."""

from __future__ import annotations

import pytest
import torch

from saesteer.models.compat import cache_argument, cached_length, find_cache, repeated_cache
from tests.hybrids import random_model


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_cache_is_found_named_and_repeated(name):
    model = random_model(name)
    ids = torch.arange(10, 18)[None]
    with torch.no_grad():
        cache = find_cache(model(ids[:, :5], use_cache=True))
        assert cached_length(cache) == 5
        named = cache_argument(model, repeated_cache(cache, 3))
        assert find_cache(named) is not cache
        rest = model(ids[:, 5:].expand(3, -1), **named, use_cache=True).logits
        expected = model(ids, use_cache=False).logits[:, 5:].expand(3, -1, -1)
    torch.testing.assert_close(rest, expected, rtol=1e-4, atol=1e-5)
    assert cached_length(cache) == 5


@pytest.mark.parametrize("name", ["mamba", "mamba2", "lfm2", "qwen35", "falconh1", "jamba"])
def test_a_cache_that_holds_states_is_found_and_not_repeated(name):
    model = random_model(name)
    ids = torch.arange(10, 15)[None]
    with torch.no_grad():
        cache = find_cache(model(ids, use_cache=True))
    assert cached_length(cache) == (None if "mamba" in name else 5)
    assert find_cache(cache_argument(model, cache)) is cache
    assert repeated_cache(cache, 2) is None
