"""Interventions in forward passes: what changes, what does not, and where."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from saesteer.models import plain_model, resolve_target
from saesteer.probes import Intervention, intervene
from saesteer.steering import steer
from saesteer.utils.errors import HookError, MismatchError, SteeringError

IDS = torch.randint(8, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def hidden_at(model, layers, inputs, context=None):
    """Return what leaves these blocks, interventions included."""
    caught = {}
    plain = plain_model(model)
    with ExitStack() as stack, torch.inference_mode():
        if context is not None:
            stack.enter_context(context)
        for layer in layers:
            module = resolve_target(model, layer).module

            def keep(_m, _i, out, layer=layer):
                caught[layer] = (out[0] if isinstance(out, tuple) else out).clone()

            stack.callback(module.register_forward_hook(keep).remove)
        out = plain(**inputs, use_cache=False)
    return [caught[layer] for layer in layers], out.logits


def split_along(x, vector):
    """Return alpha and what is orthogonal to v, in float64."""
    v = vector.direction.double() / vector.direction.double().norm()
    alpha = x.double() @ v
    return alpha, x.double() - alpha[..., None] * v


@pytest.mark.parametrize(
    ("mode", "amount"),
    [("flip", 1.0), ("flip", 20.0), ("ablate", 1.0), ("add", 0.7), ("set", -4.0)],
)
def test_alpha_becomes_what_was_asked_and_the_rest_stays(
    arch, tiny_model, probe_vector, mode, amount
):
    model, vector = tiny_model(arch), probe_vector(arch)
    item = Intervention(vector, mode, amount)
    inputs = {"input_ids": IDS}
    [before], _ = hidden_at(model, [vector.site], inputs)
    [after], logits = hidden_at(model, [vector.site], inputs, intervene(model, item))
    alpha, rest = split_along(before, vector)
    new, new_rest = split_along(after, vector)
    scale = float(before.abs().max()) * max(1.0, amount)
    assert new == pytest.approx(item.target(alpha), abs=3e-6 * scale)
    assert new_rest == pytest.approx(rest, abs=3e-6 * scale)
    assert torch.isfinite(logits).all()


def test_flipping_twice_at_one_site_is_where_one_began(tiny_model, probe_vector):
    model, vector = tiny_model("llama"), probe_vector()
    twice = [Intervention(vector, "flip"), Intervention(vector, "flip")]
    [before], _ = hidden_at(model, [vector.site], {"input_ids": IDS})
    [after], _ = hidden_at(model, [vector.site], {"input_ids": IDS}, intervene(model, twice))
    assert after == pytest.approx(before, abs=1e-5)


def test_adding_is_steering(arch, tiny_model, probe_vector):
    model, vector = tiny_model(arch), probe_vector(arch)
    inputs = {"input_ids": IDS}
    adding = intervene(model, Intervention(vector, "add", 0.6))
    _, ours = hidden_at(model, [vector.site], inputs, adding)
    _, theirs = hidden_at(model, [vector.site], inputs, steer(model, vector, 0.6))
    assert ours == pytest.approx(theirs, abs=2e-4)


def test_padding_and_special_tokens_keep_their_very_bits(arch, tiny_model, probe_vector):
    model, vector = tiny_model(arch), probe_vector(arch)
    ids = IDS.clone()
    special = model.tokenizer.eos_token_id
    ids[0, 0] = ids[1, 3] = special
    attention = torch.ones_like(ids)
    attention[1, :3] = 0
    inputs = {"input_ids": ids, "attention_mask": attention}
    inputs["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
    item = Intervention(vector, "set", 50.0)
    [before], _ = hidden_at(model, [vector.site], inputs)
    [after], _ = hidden_at(model, [vector.site], inputs, intervene(model, item))
    written = (before != after).any(dim=-1)
    expected = (attention == 1) & (ids != special)
    assert torch.equal(written, expected)


@pytest.mark.parametrize("policy", ["once", "compound"])
@pytest.mark.parametrize("mode", ["flip", "add"])
def test_at_one_layer_both_policies_are_the_same(tiny_model, probe_vector, policy, mode):
    model, vector = tiny_model("llama"), probe_vector()
    item = Intervention(vector, mode, 1.3)
    [before], _ = hidden_at(model, [vector.site], {"input_ids": IDS})
    context = intervene(model, item, policy=policy)
    [after], _ = hidden_at(model, [vector.site], {"input_ids": IDS}, context)
    alpha, _ = split_along(before, vector)
    assert split_along(after, vector)[0] == pytest.approx(item.target(alpha), abs=1e-3)


@pytest.mark.parametrize(("mode", "amount"), [("flip", 1.0), ("flip", 3.0), ("add", 0.5)])
def test_once_leaves_every_layer_as_one_intervention_on_the_clean_model_would(
    arch, tiny_model, probe_vector, mode, amount
):
    model = tiny_model(arch)
    vectors = [probe_vector(arch, layer) for layer in range(3)]
    items = [Intervention(v, mode, amount) for v in vectors]
    sites = [v.site for v in vectors]
    clean, _ = hidden_at(model, sites, {"input_ids": IDS})
    after, _ = hidden_at(model, sites, {"input_ids": IDS}, intervene(model, items))
    for vector, item, before, then in zip(vectors, items, clean, after, strict=True):
        alpha, _ = split_along(before, vector)
        found = split_along(then, vector)[0]
        scale = float(then.abs().max())
        assert found == pytest.approx(item.target(alpha), abs=1e-5 * scale)


def test_compounding_flips_what_earlier_layers_flipped(tiny_model, probe_vector):
    model = tiny_model("llama")
    vectors = [probe_vector(layer=layer) for layer in (0, 1)]
    items = [Intervention(v, "flip", 3.0) for v in vectors]
    sites = [v.site for v in vectors]
    clean, _ = hidden_at(model, sites, {"input_ids": IDS})
    first, _ = hidden_at(model, sites, {"input_ids": IDS}, intervene(model, items[0]))
    both, _ = hidden_at(
        model, sites, {"input_ids": IDS}, intervene(model, items, policy="compound")
    )
    running, _ = split_along(first[1], vectors[1])
    found, _ = split_along(both[1], vectors[1])
    assert found == pytest.approx(-3.0 * running, abs=1e-3)
    once = -3.0 * split_along(clean[1], vectors[1])[0]
    assert (found - once).abs().max() > 1.0


def test_hooks_come_off_after_an_exception(tiny_model, probe_vector):
    model = tiny_model("llama")
    items = [Intervention(probe_vector(layer=layer), "flip", 9.0) for layer in (0, 1)]
    _, before = hidden_at(model, [items[0].vector.site], {"input_ids": IDS})
    with pytest.raises(RuntimeError, match="stop"), intervene(model, items):
        raise RuntimeError("stop")
    _, after = hidden_at(model, [items[0].vector.site], {"input_ids": IDS})
    assert torch.equal(before, after)


def test_the_bridge_itself_is_intervened_on_as_well(tiny_model, probe_vector):
    model, vector = tiny_model("llama"), probe_vector()
    item = Intervention(vector, "set", 30.0)
    with torch.inference_mode():
        with intervene(model, item):
            bridged = model(IDS)
        _, plain = hidden_at(model, [vector.site], {"input_ids": IDS}, intervene(model, item))
    assert bridged == pytest.approx(plain, abs=1e-3)


def test_an_intervention_that_never_took_place_is_an_error(tiny_model, probe_vector):
    with pytest.raises(HookError, match="never took place"):
        with intervene(tiny_model("llama"), Intervention(probe_vector(), "flip")):
            pass


def test_a_vector_of_another_model_is_refused(tiny_model, probe_vector):
    item = Intervention(probe_vector("gpt2"), "flip")
    with pytest.raises(MismatchError, match="made on other weights"):
        with intervene(tiny_model("llama"), item):
            pass


def test_a_vector_of_another_width_is_refused(tiny_model, probe_vector):
    vector = probe_vector()
    wide = type(vector).from_raw(torch.ones(40), site=vector.site, model="wide")
    with pytest.raises(MismatchError, match="40 wide and this model's residual stream 32"):
        with intervene(tiny_model("llama"), Intervention(wide, "flip")):
            pass


def test_nothing_to_do_and_unknown_policies_are_refused(tiny_model, probe_vector):
    model = tiny_model("llama")
    with pytest.raises(SteeringError, match="there are no interventions"):
        with intervene(model, []):
            pass
    with pytest.raises(SteeringError, match="policy 'twice' is unknown"):
        with intervene(model, Intervention(probe_vector()), policy="twice"):  # type: ignore[arg-type]
            pass
