"""Programs that share their beginning, run in one pass, against each run on its own."""

from __future__ import annotations

import pytest
import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.family import family_states, shared_walk
from saesteer.corruption.fitted import fit_linear_maps, measure_means, reference_texts, text_rows
from saesteer.corruption.program import LinearSpan, make_family, parse_program
from saesteer.models import plain_model
from saesteer.models.tokens import TokenBatch
from saesteer.models.unembed import Unembedding


@pytest.fixture
def batch(some_ids) -> TokenBatch:
    """Two rows, the second shorter and padded on the right."""
    ids = some_ids(rows=2, width=18)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    return TokenBatch(ids, mask, mask.bool())


TEXTS = [
    "keep 0", "keep 1", "keep 2", "all", "skip 0", "skip 1", "repeat 1 x2", "reverse", "[]",
    "[1, 1]", "linear 0-1", "linear 1-2", "zero mlp 1", "zero mlp 1, skip 0", "mean heads 0.1",
    "noise 0.3 at 1",
]  # fmt: skip


def test_every_program_of_a_family_gives_what_it_gives_alone(arch, tiny_model, batch):
    model = tiny_model(arch)
    programs = [parse_program(text, 3, n_heads=4) for text in TEXTS]
    rows = text_rows(model, reference_texts("bundled", limit=20))
    maps = fit_linear_maps(model, [LinearSpan(0, 1), LinearSpan(1, 2)], rows)
    means = measure_means(model, rows)
    states = family_states(model, programs, batch, batch.span, maps=maps, means=means)
    unembed = Unembedding(model).logits
    for program, state in zip(programs, states, strict=True):
        with corrupted(model, program, maps=maps, means=means), torch.no_grad():
            wanted = plain_model(model)(**batch.inputs).logits[batch.span]
        torch.testing.assert_close(unembed(state), wanted, atol=2e-5, rtol=1e-4)


def test_keeping_more_and_more_layers_runs_every_block_once(tiny_llama, batch):
    plain = plain_model(tiny_llama)
    calls = []
    handles = [
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
        for i, block in enumerate(plain.model.layers)
    ]
    states = family_states(tiny_llama, make_family("keep", 3).programs, batch, batch.span)
    for handle in handles:
        handle.remove()
    assert calls == [0, 1, 2]
    assert len(states) == 4 and all(state.shape == (29, 32) for state in states)


def test_a_walk_runs_each_shared_beginning_once():
    at_root, visits = shared_walk([(0, 1, 2), (0, 2), (), (0, 1), (0, 1, 2)])
    assert at_root == (2,)
    assert [(v.step, v.parent, v.ends) for v in visits] == [
        (0, -1, ()),
        (1, 0, (3,)),
        (2, 1, (0, 4)),
        (2, 0, (1,)),
    ]
    # Skipping layer i shares the layers below it with the others and has those above for itself.
    every = [parse_program(f"skip {i}", 30).steps for i in range(30)]
    assert len(shared_walk(every)[1]) == 29 + sum(29 - i for i in range(30))


def test_nothing_is_left_behind_after_an_error(tiny_llama, batch):
    ids = batch.input_ids
    before = plain_model(tiny_llama)(ids).logits
    with pytest.raises(KeyError):
        family_states(tiny_llama, [parse_program("linear 0", 3)], batch, batch.span)
    assert torch.equal(plain_model(tiny_llama)(ids).logits, before)
