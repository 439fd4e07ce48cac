"""Every engine writes what transformers writes, in order, and refuses what it cannot do."""

from __future__ import annotations

import pytest

from saesteer.steering import generate
from saesteer.steering.engines.paged import PagedEngine

PROMPTS = ["The cat sat on the mat", "I like", "What do you think about the weather today? " * 3]


@pytest.mark.parametrize("where", ["from_last_prompt_token", "generated", "everywhere"])
def test_paged(arch, tiny_model, make_vector, where):
    llama = tiny_model(arch)
    v = make_vector(arch=arch)
    a = generate(llama, PROMPTS, v, [0.0, 0.7, -0.7], max_new_tokens=12, positions=where)
    b = generate(
        llama,
        PROMPTS,
        v,
        [0.0, 0.7, -0.7],
        max_new_tokens=12,
        positions=where,
        engine=PagedEngine(llama),
    )
    print([r.text for r in a.records])
    assert a == b
