"""Steering is adding a vector by hand: where, how much, to which rows, and no trace behind it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from saesteer.models.loading import plain_model
from saesteer.steering import steer
from saesteer.utils.errors import HookError, MismatchError, SiteError, SteeringError
from tests.by_hand import added, count_hooks

SITE = "blocks.1.hook_resid_post"


def run(model, ids, mask=None, **kwargs):
    with torch.no_grad():
        return plain_model(model)(input_ids=ids, attention_mask=mask, **kwargs).logits


@contextmanager
def watching(block):
    """Keep what enters a block."""
    seen = []
    handle = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    try:
        yield seen
    finally:
        handle.remove()


def by_hand(model, ids, mask=None, *changes):
    """Logits with vectors added at places: each (module, vector, length, [(row, column)])."""
    contexts = []
    for module, vector, length, where in changes:
        change = torch.zeros(*ids.shape, vector.d_model)
        for row, column in where:
            change[row, column] = length * vector.direction
        contexts.append(added(module, change))
    for context in contexts:
        context.__enter__()
    try:
        return run(model, ids, mask)
    finally:
        for context in contexts:
            context.__exit__(None, None, None)


def layers(model):
    return plain_model(model).model.layers


@pytest.mark.parametrize(("unit", "length"), [("norm", 2.0), ("raw", 0.2), ("max_act", 0.8)])
def test_steering_equals_adding_by_hand(llama, make_vector, unit, length, random_ids):
    vector, ids = make_vector(), random_ids(3, 7)
    # Each row at its own last token, left- and right-padded ones too.
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    last = [(0, 6), (1, 6), (2, 3)]
    expected = by_hand(llama, ids, mask, (layers(llama)[1], vector, length, last))
    with vector.steer(llama, strength=0.2, unit=unit):
        steered = run(llama, ids, mask)
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(steered, run(llama, ids, mask), atol=1e-3)


def test_all_means_every_real_token_but_the_special_ones(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    special = torch.tensor([[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    # A mask of one's own never reaches padding.
    own = torch.zeros(2, 5, dtype=torch.bool)
    own[:, 1:4] = True
    plain = [(0, 3), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4)]
    how: Any
    for how, where in (
        ({"positions": "all", "special_mask": special}, plain),
        ({"positions": "all"}, [*plain, (0, 2), (1, 0)]),
        ({"positions": own}, [(0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]),
    ):
        expected = by_hand(llama, ids, mask, (layers(llama)[1], vector, 2.0, where))
        with vector.steer(llama, 2.0, "raw", **how):
            torch.testing.assert_close(run(llama, ids, mask), expected)


def test_every_row_has_its_own_strength_as_if_it_ran_alone(llama, make_vector, random_ids):
    vector, one = make_vector(), random_ids(1, 6)
    strengths = [-0.3, 0.0, 0.1, 0.5]
    with vector.steer(llama, strengths):
        together = run(llama, one.repeat(4, 1))
    for row, strength in enumerate(strengths):
        with vector.steer(llama, strength):
            torch.testing.assert_close(together[row], run(llama, one)[0], rtol=1e-4, atol=1e-4)
    # Strengths take consecutive rows, or those asked for.
    ids = random_ids(4, 6)
    how: Any
    for how, same in (
        ({"strength": [0.2, -0.2]}, [0.2, 0.2, -0.2, -0.2]),
        ({"strength": [0.2, -0.2], "rows": [3, 1]}, [0.0, -0.2, 0.0, 0.2]),
        ({"strength": 0.2, "rows": [2]}, [0.0, 0.0, 0.2, 0.0]),
    ):
        with vector.steer(llama, **how):
            steered = run(llama, ids)
        with vector.steer(llama, same):
            assert torch.equal(run(llama, ids), steered)


@pytest.mark.parametrize("name", ["llama", "bf16_llama"])
def test_strength_zero_is_bit_identical_and_the_vector_takes_the_models_dtype(
    request, make_vector, name, random_ids
):
    model = request.getfixturevalue(name)
    vector, ids = make_vector(), random_ids(3, 6)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    plain = run(model, ids, mask)
    with vector.steer(model, 0.0):
        assert torch.equal(run(model, ids, mask), plain)
    with vector.steer(model, [0.0, -0.0, 0.4], positions="all"):
        mixed = run(model, ids, mask)
    assert torch.equal(mixed[:2], plain[:2])
    assert not torch.equal(mixed[2], plain[2])
    change = torch.zeros(3, 6, 32, dtype=plain_model(model).dtype)
    change[:, 5] = 2 * vector.direction
    with added(layers(model)[1], change):
        expected = run(model, ids)
    with vector.steer(model, 2.0, "raw"):
        torch.testing.assert_close(run(model, ids), expected)


def test_an_untouched_row_keeps_even_its_negative_zeros(llama, make_vector, random_ids):
    block = layers(llama)[1]
    zero = block.register_forward_hook(lambda _m, _i, output: torch.full_like(output, -0.0))
    with watching(layers(llama)[2]) as seen, make_vector().steer(llama, [0.0, 1.0]):
        run(llama, random_ids(2, 3))
    zero.remove()
    assert torch.signbit(seen[0][0]).all()


def test_vectors_compose_at_one_site_at_several_and_nested(llama, make_vector, random_ids):
    ids, last = random_ids(2, 5), [(0, 4), (1, 4)]
    a, b, c = make_vector(1), make_vector(2), make_vector(3, "blocks.0.hook_resid_post")
    block, below = layers(llama)[1], layers(llama)[0]
    both = [(block, a, 0.5, last), (block, b, 0.5, last), (below, c, 0.5, last)]
    expected = by_hand(llama, ids, None, *both)
    with steer(llama, [a, b, c], 0.5, "raw"):
        torch.testing.assert_close(run(llama, ids), expected)
    with a.steer(llama, 0.5, "raw"), b.steer(llama, 0.5, "raw"), c.steer(llama, 0.5, "raw"):
        torch.testing.assert_close(run(llama, ids), expected)
    # What each vector saved about positions is followed.
    d = make_vector(2, positions="all")
    everywhere = [(row, column) for row in range(2) for column in range(5)]
    expected = by_hand(llama, ids, None, both[0], (block, d, 0.5, everywhere))
    with steer(llama, [a, d], 0.5, "raw"):
        torch.testing.assert_close(run(llama, ids), expected)


def test_the_bridge_is_steered_as_the_plain_model_is(llama, make_vector, random_ids):
    vector, ids = make_vector(positions="all"), random_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    real = mask.bool()
    with vector.steer(llama, 0.4), torch.no_grad():
        expected = run(llama, ids, mask)
        through_bridge = llama(ids, attention_mask=mask, padding_side="left")
    torch.testing.assert_close(through_bridge[real], expected[real], rtol=1e-4, atol=1e-4)
    for site, module in (
        ("blocks.1.hook_mlp_out", layers(llama)[1].mlp),
        ("blocks.2.hook_resid_pre", layers(llama)[1]),
    ):
        there = make_vector(site=site)
        expected = by_hand(llama, ids, None, (module, there, 2.0, [(0, 5), (1, 5)]))
        with there.steer(llama, 2.0, "raw"), torch.no_grad():
            torch.testing.assert_close(llama(ids), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_direction(llama, make_vector, random_ids):
    ids = random_ids(2, 5)
    raw = torch.randn(32, generator=torch.Generator().manual_seed(5)).requires_grad_()

    def loss(values):
        vector = make_vector().from_raw(values, site=SITE, model="tiny")
        with vector.steer(llama, [1.0, 2.0], "raw"):
            total = torch.zeros(())
            for _ in range(2):  # a second pass must not meet a freed graph
                total = total + plain_model(llama)(ids).logits[:, -1, 10].sum()
        return total

    loss(raw).backward()
    loss(raw).backward()
    assert raw.grad is not None
    step = torch.zeros(32)
    step[4] = 1e-2
    with torch.no_grad():
        slope = (loss(raw + step) - loss(raw - step)) / 2e-2
    assert float(raw.grad[4]) / 2 == pytest.approx(float(slope), rel=2e-2, abs=2e-3)


def test_hooks_come_off_however_the_block_ends(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(1, 4)
    before, plain = count_hooks(llama), run(llama, ids)
    with vector.steer(llama, 1.0):
        assert count_hooks(llama) > before
        run(llama, ids)
    assert count_hooks(llama) == before
    with pytest.raises(KeyboardInterrupt), vector.steer(llama, 1.0):
        raise KeyboardInterrupt
    with pytest.raises(SteeringError), vector.steer(llama, [1.0, 2.0, 3.0]):
        run(llama, random_ids(2, 4))
    with pytest.raises(SiteError), steer(llama, [vector, make_vector(site="blocks.9.x")], 1.0):
        pass
    assert count_hooks(llama) == before
    assert torch.equal(run(llama, ids), plain)


@pytest.mark.parametrize("strength", [0.2, 0.0])
def test_a_pass_that_never_took_place_or_ran_one_block_is_an_error(
    llama, second_llama, make_vector, random_ids, strength
):
    with (
        pytest.raises(HookError, match=r"blocks.1.hook_resid_post never took place"),
        make_vector().steer(llama, strength),
    ):
        pass
    with pytest.raises(HookError), make_vector().steer(llama, strength):
        run(second_llama, random_ids(1, 3))
    with pytest.raises(HookError, match="call the model"), make_vector().steer(llama, 1.0):
        rotary = plain_model(llama).model.rotary_emb(torch.ones(1, 2, 32), torch.arange(2)[None])
        layers(llama)[1](torch.ones(1, 2, 32), position_embeddings=rotary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.0, "positions": "first"}, "positions 'first'"),
        ({"strength": 1.0, "positions": torch.ones(1, 3)}, "boolean"),
        ({"strength": 1.0, "positions": torch.ones(2, 9).bool()}, r"\(2, 9\)"),
        ({"strength": 1.0, "special_mask": torch.ones(3, 4).bool()}, "special_mask"),
        ({"strength": 1.0, "prompt_length": 0}, "prompt_length"),
        ({"strength": [0.1, 0.2, 0.3]}, "3 strengths do not fit a batch of 2 rows"),
        ({"strength": [0.1, 0.2], "rows": [1]}, "2 strengths do not fit 1 rows"),
        ({"strength": 0.0, "rows": [2]}, "row 2 and the batch has 2"),
        ({"strength": 0.1, "rows": []}, "rows"),
        ({"strength": 0.1, "rows": [1, 1]}, "rows"),
    ],
)
def test_what_cannot_be_done_is_said(llama, make_vector, arguments, message, random_ids):
    with pytest.raises(SteeringError, match=message), make_vector().steer(llama, **arguments):
        run(llama, random_ids(2, 4))


def test_a_vector_of_another_model_is_refused(llama, make_vector, random_ids):
    wide = make_vector().from_raw(torch.ones(48), site=SITE, model="big")
    with pytest.raises(MismatchError, match="48 wide and this model's residual stream 32"):
        wide.steer(llama, 1.0, "raw").__enter__()
    other = make_vector(model_fingerprint="0" * 64)
    with pytest.raises(MismatchError, match="strict=False"):
        other.steer(llama, 1.0).__enter__()
    with other.steer(llama, 1.0, strict=False):
        run(llama, random_ids(1, 3))
    keys = make_vector(site="blocks.1.attn.hook_k")
    with pytest.raises(MismatchError, match="hidden state at"), keys.steer(llama, 1.0):
        llama(random_ids(1, 3))
    with pytest.raises(SteeringError, match="no vectors"), steer(llama, [], 1.0):
        pass
