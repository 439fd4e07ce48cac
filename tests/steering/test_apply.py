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


def added_at(vector, length, shape, where):
    change = torch.zeros(*shape, vector.d_model)
    for row, column in where:
        change[row, column] = length * vector.direction
    return change


@pytest.mark.parametrize(("unit", "length"), [("norm", 2.0), ("raw", 0.2), ("max_act", 0.8)])
def test_steering_equals_adding_by_hand(llama, make_vector, unit, length, random_ids):
    vector, ids = make_vector(), random_ids(2, 7)
    block = plain_model(llama).model.layers[1]
    with added(block, added_at(vector, length, (2, 7), [(0, 6), (1, 6)])):
        expected = run(llama, ids)
    with vector.steer(llama, strength=0.2, unit=unit):
        steered = run(llama, ids)
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(steered, run(llama, ids), atol=1e-3)


def test_the_vector_is_added_where_it_was_read_and_nowhere_else(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(3, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with watching(plain_model(llama).model.layers[2]) as seen:
        run(llama, ids, mask)
        with vector.steer(llama, 3.0, "raw"):
            run(llama, ids, mask)
    change = seen[1] - seen[0]
    assert torch.equal(change[:, :-1], torch.zeros_like(change[:, :-1]))
    torch.testing.assert_close(
        change[:, -1], (3 * vector.direction).expand(3, -1), atol=1e-5, rtol=0
    )


def test_right_padded_rows_are_steered_at_their_own_last_token(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with added(plain_model(llama).model.layers[1], added_at(vector, 2.0, (2, 6), [(0, 3), (1, 5)])):
        expected = run(llama, ids, mask)
    with vector.steer(llama, 2.0, "raw"):
        steered = run(llama, ids, mask)
    torch.testing.assert_close(steered, expected)


def test_all_means_every_real_token_but_the_special_ones(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    special = torch.tensor([[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    where = [(0, 3), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4)]
    block = plain_model(llama).model.layers[1]
    with added(block, added_at(vector, 2.0, (2, 5), where)):
        expected = run(llama, ids, mask)
    with vector.steer(llama, 2.0, "raw", positions="all", special_mask=special):
        torch.testing.assert_close(run(llama, ids, mask), expected)
    with added(block, added_at(vector, 2.0, (2, 5), [*where, (0, 2), (1, 0)])):
        expected = run(llama, ids, mask)
    with vector.steer(llama, 2.0, "raw", positions="all"):
        torch.testing.assert_close(run(llama, ids, mask), expected)

    # A mask of one's own never reaches padding.
    written = torch.zeros(2, 5, dtype=torch.bool)
    written[:, 1:4] = True
    where = [(0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    with added(block, added_at(vector, 2.0, (2, 5), where)):
        expected = run(llama, ids, mask)
    with vector.steer(llama, 2.0, "raw", positions=written):
        torch.testing.assert_close(run(llama, ids, mask), expected)


def test_every_row_has_its_own_strength_as_if_it_ran_alone(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(1, 6).repeat(4, 1)
    strengths = [-0.3, 0.0, 0.1, 0.5]
    with vector.steer(llama, strengths):
        together = run(llama, ids)
    for row, strength in enumerate(strengths):
        with vector.steer(llama, strength):
            alone = run(llama, ids[:1])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_consecutive_rows_or_the_rows_asked_for_are_steered(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(4, 6)
    with vector.steer(llama, [0.2, -0.2]):
        blocks = run(llama, ids)
    with vector.steer(llama, [0.2, 0.2, -0.2, -0.2]):
        assert torch.equal(run(llama, ids), blocks)
    with vector.steer(llama, [0.2, -0.2], rows=[3, 1]):
        steered = run(llama, ids)
    with vector.steer(llama, [0.0, -0.2, 0.0, 0.2]):
        assert torch.equal(run(llama, ids), steered)
    with vector.steer(llama, 0.2, rows=[2]):
        steered = run(llama, ids)
    with vector.steer(llama, [0.0, 0.0, 0.2, 0.0]):
        assert torch.equal(run(llama, ids), steered)


@pytest.mark.parametrize("name", ["llama", "bf16_llama"])
def test_strength_zero_is_bit_identical(request, make_vector, name, random_ids):
    model = request.getfixturevalue(name)
    vector, ids = make_vector(model_fingerprint=None), random_ids(3, 6)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    plain = run(model, ids, mask)
    with vector.steer(model, 0.0):
        assert torch.equal(run(model, ids, mask), plain)
    with vector.steer(model, [0.0, -0.0, 0.4], positions="all"):
        mixed = run(model, ids, mask)
    assert torch.equal(mixed[:2], plain[:2])
    assert not torch.equal(mixed[2], plain[2])


def test_an_untouched_row_keeps_even_its_negative_zeros(llama, make_vector, random_ids):
    plain = plain_model(llama)
    block = plain.model.layers[1]
    zero = block.register_forward_hook(lambda _m, _i, output: torch.full_like(output, -0.0))
    with watching(plain.model.layers[2]) as seen, make_vector().steer(llama, [0.0, 1.0]):
        run(llama, random_ids(2, 3))
    zero.remove()
    assert torch.signbit(seen[0][0]).all()


def test_the_vector_takes_the_models_dtype(bf16_llama, make_vector, random_ids):
    model = bf16_llama
    vector, ids = make_vector(model_fingerprint=None), random_ids(1, 4)
    change = added_at(vector, 2.0, (1, 4), [(0, 3)]).bfloat16()
    with added(plain_model(model).model.layers[1], change):
        expected = run(model, ids)
    with vector.steer(model, 2.0, "raw"):
        assert torch.equal(run(model, ids), expected)


def test_vectors_compose_at_one_site_at_several_and_nested(llama, make_vector, random_ids):
    with pytest.raises(SteeringError, match="no vectors"), steer(llama, [], 1.0):
        pass
    ids = random_ids(2, 5)
    a, b, c = make_vector(1), make_vector(2), make_vector(3, "blocks.0.hook_resid_post")
    layers = plain_model(llama).model.layers
    last = [(0, 4), (1, 4)]
    both = added_at(a, 0.5, (2, 5), last) + added_at(b, 0.5, (2, 5), last)
    with added(layers[1], both), added(layers[0], added_at(c, 0.5, (2, 5), last)):
        expected = run(llama, ids)
    with steer(llama, [a, b, c], 0.5, "raw"):
        torch.testing.assert_close(run(llama, ids), expected)
    with a.steer(llama, 0.5, "raw"), b.steer(llama, 0.5, "raw"), c.steer(llama, 0.5, "raw"):
        torch.testing.assert_close(run(llama, ids), expected)
    # What each vector saved about positions is followed.
    d = make_vector(2, positions="all")
    everywhere = [(row, column) for row in range(2) for column in range(5)]
    both = added_at(a, 0.5, (2, 5), last) + added_at(d, 0.5, (2, 5), everywhere)
    with added(layers[1], both):
        expected = run(llama, ids)
    with steer(llama, [a, d], 0.5, "raw"):
        torch.testing.assert_close(run(llama, ids), expected)


def test_the_bridge_is_steered_as_the_plain_model_is(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with vector.steer(llama, 0.4, positions="all"):
        expected = run(llama, ids, mask)
    with vector.steer(llama, 0.4, positions="all"), torch.no_grad():
        through_bridge = llama(ids, attention_mask=mask, padding_side="left")
    real = mask.bool()
    torch.testing.assert_close(through_bridge[real], expected[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["blocks.1.hook_mlp_out", "blocks.2.hook_resid_pre"])
def test_other_sites_are_steered_too(llama, make_vector, site, random_ids):
    vector, ids = make_vector(site=site), random_ids(2, 5)
    layers = plain_model(llama).model.layers
    module = layers[1].mlp if "mlp" in site else layers[1]
    with added(module, added_at(vector, 2.0, (2, 5), [(0, 4), (1, 4)])):
        expected = run(llama, ids)
    with vector.steer(llama, 2.0, "raw"), torch.no_grad():
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
    assert count_hooks(llama) == before
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
        block = plain_model(llama).model.layers[1]
        rotary = plain_model(llama).model.rotary_emb(torch.ones(1, 2, 32), torch.arange(2)[None])
        block(torch.ones(1, 2, 32), position_embeddings=rotary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": float("nan")}, "not finite"),
        ({"strength": []}, "empty"),
        ({"strength": 1.0, "unit": "metres"}, "unit 'metres'"),
        ({"strength": 1.0, "positions": "first"}, "positions 'first'"),
        ({"strength": 1.0, "positions": torch.ones(1, 3)}, "boolean"),
        ({"strength": 1.0, "positions": torch.ones(2, 9).bool()}, r"\(2, 9\)"),
        ({"strength": 1.0, "special_mask": torch.ones(3, 4).bool()}, "special_mask"),
        ({"strength": 1.0, "prompt_length": 0}, "prompt_length"),
        ({"strength": [0.1, 0.2, 0.3]}, "3 strengths do not fit a batch of 2 rows"),
        ({"strength": [0.1, 0.2], "rows": [1]}, "2 strengths do not fit 1 rows"),
        ({"strength": 0.1, "rows": [2]}, "row 2 and the batch has 2"),
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


def test_any_hugging_face_call_of_the_model_is_steered(llama, make_vector, random_ids):
    bridge: Any = llama
    plain: Any = plain_model(llama)
    vector, ids = make_vector(), random_ids(2, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    with vector.steer(llama, strength=8.0):
        expected = plain.generate(**inputs, **how)
        assert torch.equal(bridge.generate(**inputs, **how), expected)
    assert not torch.equal(bridge.generate(**inputs, **how), expected)
    # The name before this one.
    with vector.apply(llama, strength=8.0):
        assert torch.equal(bridge.generate(**inputs, **how), expected)
