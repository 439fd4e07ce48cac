"""Heads and MLPs put to zero or to their mean, and noise."""

from __future__ import annotations

import pytest
import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.fitted import measure_means, text_rows
from saesteer.corruption.program import parse_program
from saesteer.models import plain_model
from saesteer.models.compat import cache_argument, find_cache
from saesteer.utils.errors import ConfigError

TEXTS = ["the cat sat on the mat", "I like helping people", "what do you think of it today"]
PARTS = {
    "gpt2": ("transformer.h", "attn.c_proj"),
    "llama": ("model.layers", "self_attn.o_proj"),
}


def _program(text):
    return parse_program(text, 3, n_heads=4)


@pytest.mark.parametrize("arch", PARTS)
def test_a_zeroed_head_is_a_head_whose_output_weights_are_zero(
    arch, tiny_model, hf_model, some_ids
):
    model, reference, ids = tiny_model(arch), hf_model(arch), some_ids()
    blocks, out = PARTS[arch]
    weight = reference.get_submodule(f"{blocks}.1.{out}").weight
    with torch.no_grad():
        # GPT-2 keeps its projections transposed.
        (weight if arch == "gpt2" else weight.T)[16:24] = 0
        wanted = reference(ids).logits
        with corrupted(model, _program("zero heads 1.2")):
            plain, bridged = plain_model(model)(ids).logits, model(ids)
    torch.testing.assert_close(plain, wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(bridged, wanted, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(plain, plain_model(model)(ids).logits, atol=1e-3)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_an_mlp_is_replaced_wherever_it_runs(arch, how, tiny_model, hf_model, block_loop, some_ids):
    model, reference, ids = tiny_model(arch), hf_model(arch), some_ids()
    means = measure_means(model, text_rows(model, TEXTS))
    value = means.mlps[1] if how == "mean" else torch.zeros(32)
    mlp = reference.get_submodule(f"{PARTS[arch][0]}.1.mlp")
    mlp.register_forward_hook(lambda _m, _a, output: value.expand_as(output))
    wanted = block_loop(reference, ids, [0, 1, 1, 2])
    with corrupted(model, _program(f"{how} mlp 1, repeat 1 x2"), means=means), torch.no_grad():
        plain, bridged = plain_model(model)(ids).logits, model(ids)
    torch.testing.assert_close(plain, wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(bridged, wanted, atol=2e-5, rtol=1e-4)


def test_means_are_those_of_the_texts_own_tokens(arch, tiny_model, hf_model):
    model, reference = tiny_model(arch), hf_model(arch)
    rows = text_rows(model, TEXTS)
    seen = {"mlp": [], "o": []}
    blocks, out = PARTS[arch]
    mlp, project = (reference.get_submodule(f"{blocks}.2.{name}") for name in ("mlp", out))
    mlp.register_forward_hook(lambda _m, _a, output: seen["mlp"].append(output[0]))
    project.register_forward_pre_hook(lambda _m, args: seen["o"].append(args[0][0]))
    kept = []
    with torch.no_grad():
        for row in rows:
            reference(torch.tensor([row.ids]))
            kept.append(torch.tensor(row.kept))
    means = measure_means(model, rows, max_tokens=24)
    chosen = torch.cat(kept)
    torch.testing.assert_close(means.mlps[2], torch.cat(seen["mlp"])[chosen].mean(0))
    torch.testing.assert_close(means.heads[2], torch.cat(seen["o"])[chosen].mean(0))
    assert means.n_tokens == int(chosen.sum())


def test_a_head_at_its_mean_writes_the_mean(tiny_llama, some_ids):
    with pytest.raises(ConfigError, match="no token to average over"):
        measure_means(tiny_llama, [])
    means = measure_means(tiny_llama, text_rows(tiny_llama, TEXTS))
    project = plain_model(tiny_llama).get_submodule("model.layers.1.self_attn.o_proj")
    seen = []
    with corrupted(tiny_llama, _program("mean heads 1.3"), means=means):
        # Behind the edit, so that it sees what the projection sees.
        handle = project.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        plain_model(tiny_llama)(some_ids())
        handle.remove()
    torch.testing.assert_close(seen[0][1, 5, 24:], means.heads[1][24:])


def test_noise_is_the_same_with_a_cache_and_without(tiny_llama, some_ids):
    model, ids = tiny_llama, some_ids(rows=2, width=10)
    plain = plain_model(model)
    with corrupted(model, _program("noise 0.4 at 1 seed=3")), torch.no_grad():
        whole = plain(ids).logits
        first = plain(ids[:, :6], use_cache=True)
        rest = plain(ids[:, 6:], **cache_argument(plain, find_cache(first))).logits
        again = plain(ids).logits
        bridged = model(ids)
    torch.testing.assert_close(whole[:, 6:], rest, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(whole, bridged, atol=2e-5, rtol=1e-4)
    assert torch.equal(whole, again)
    with corrupted(model, _program("noise 0.4 at 1 seed=4")):
        assert not torch.allclose(plain(ids).logits, whole)
    # It has the length that was asked for.
    block = plain.get_submodule("model.layers.1")
    seen = []
    clean = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with corrupted(model, _program("noise 0.25 at 1")):
        noisy = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        plain(ids)
    noisy.remove()
    clean.remove()
    ratio = (seen[1] - seen[0]).norm(dim=-1) / seen[0].norm(dim=-1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.25))
