"""Layer programs and edits of parts on one model, against a loop over Hugging Face's blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.family import family_states
from saesteer.corruption.fitted import (
    fit_linear_maps,
    measure_means,
    reference_texts,
    text_rows,
)
from saesteer.corruption.measure import complete_prompts
from saesteer.corruption.program import LinearSpan, Program, make_family, parse_program
from saesteer.models import plain_model
from saesteer.models.compat import cache_argument, find_cache
from saesteer.models.tokens import TokenBatch
from saesteer.models.unembed import Unembedding
from saesteer.utils.errors import ConfigError


def _plain(model) -> Any:
    return plain_model(model)


ORDERS = {
    "[]": [],
    "keep 1": [0],
    "skip 1": [0, 2],
    "skip 0": [1, 2],
    "repeat 1 x3": [0, 1, 1, 1, 2],
    "repeat 0-1 x2": [0, 1, 0, 1, 2],
    "reverse": [2, 1, 0],
    "[1]": [1],
    "all, all": [0, 1, 2, 0, 1, 2],
}


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3", "qwen3"])
def test_a_program_gives_the_logits_of_the_same_blocks_run_by_hand(
    arch, tiny_model, hf_model, block_loop, some_ids
):
    model, reference, ids = tiny_model(arch), hf_model(arch), some_ids()
    with torch.no_grad():
        before = model(ids), plain_model(model)(ids).logits
        with corrupted(model, parse_program("0-2", 3)):
            within = model(ids), plain_model(model)(ids).logits
    assert torch.equal(before[0], within[0]) and torch.equal(before[1], within[1])
    for text, order in ORDERS.items():
        wanted = block_loop(reference, ids, order)
        with corrupted(model, parse_program(text, 3)), torch.no_grad():
            bridged, plain = model(ids), plain_model(model)(ids).logits
        torch.testing.assert_close(plain, wanted, atol=2e-5, rtol=1e-4, msg=text)
        torch.testing.assert_close(bridged, wanted, atol=2e-5, rtol=1e-4, msg=text)


def test_the_bridge_caches_and_generates_what_a_program_computes_and_hooks_follow_a_block(
    tiny_llama, some_ids
):
    ids = some_ids(rows=1)
    with corrupted(tiny_llama, parse_program("[0, 2]", 3)), torch.no_grad():
        _, cache = tiny_llama.run_with_cache(ids)
    torch.testing.assert_close(cache["blocks.2.hook_resid_pre"], cache["blocks.0.hook_resid_post"])
    assert "blocks.1.hook_resid_pre" not in cache
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    with corrupted(tiny_llama, parse_program("repeat 1 x2 then skip 0", 3)):
        plain = _plain(tiny_llama).generate(ids, min_new_tokens=6, eos_token_id=None, **options)
        bridged = tiny_llama.generate(ids, stop_at_eos=False, verbose=False, **options)
    assert bridged.tolist() == plain.tolist()
    calls = []
    with corrupted(tiny_llama, parse_program("[1, 1, 0]", 3)):
        block = plain_model(tiny_llama).get_submodule("model.layers.1")
        handle = block.register_forward_hook(lambda *_: calls.append(1))
        plain_model(tiny_llama)(ids)
        handle.remove()
    assert len(calls) == 2


def test_nothing_is_copied_and_all_is_put_back_also_after_an_exception(tiny_llama, some_ids):
    plain, ids = plain_model(tiny_llama), some_ids()
    before = plain(ids).logits
    lists = [(owner, list(owner._modules)) for owner in plain.modules()]
    weights = {name: tensor.data_ptr() for name, tensor in plain.named_parameters()}
    config = plain.config.to_dict()
    text = "repeat 0 x2, reverse, zero heads 0.*, zero mlp 0-2, noise 1 at 0"
    program = parse_program(text, 3, n_heads=4)
    with pytest.raises(ZeroDivisionError), corrupted(tiny_llama, program):
        inside = {name: tensor.data_ptr() for name, tensor in plain.named_parameters()}
        assert inside == weights
        _ = 1 / 0
    assert plain.config.to_dict() == config
    assert [(owner, list(owner._modules)) for owner in plain.modules()] == lists
    assert torch.equal(plain(ids).logits, before)


def test_what_cannot_run_is_refused(tiny_llama):
    with corrupted(tiny_llama, parse_program("keep 1", 3)):
        with pytest.raises(ConfigError, match="running already"):
            with corrupted(tiny_llama, parse_program("keep 2", 3)):
                pass
    for program, message in (
        (Program((), 12), "read for 12 layers"),
        (parse_program("linear 0-1", 3), "no map for 'linear 0-1'"),
        (parse_program("mean mlp 1", 3), "no means are there"),
    ):
        with pytest.raises(ConfigError, match=message):
            with corrupted(tiny_llama, program):
                pass


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


def test_every_program_of_a_family_gives_what_it_gives_alone(tiny_llama, batch):
    model = tiny_llama
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


def test_each_program_completes_as_its_blocks_run_by_hand(tiny_llama, hf_model, block_loop):
    model, reference = tiny_llama, hf_model("llama")
    prompts = ["the cat sat on", "I like helping people and"]
    programs = make_family("keep", 3).programs
    found = complete_prompts(model, programs, prompts, max_new_tokens=5)
    assert [(one["program"], one["prompt"]) for one in found] == [
        (str(program), prompt) for program in programs for prompt in prompts
    ]
    ends = reference.generation_config.eos_token_id
    for one in found:
        bos = model.tokenizer.bos_token_id
        start = model.tokenizer(one["prompt"], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([([] if bos is None else [bos]) + start])
        width = ids.shape[1]
        for _ in range(5):
            order = range(int(one["program"].split()[1]))
            after = block_loop(reference, ids, order)[:, -1].argmax(dim=-1)
            if int(after) == ends:
                break
            ids = torch.cat([ids, after[:, None]], dim=1)
        assert one["text"] == model.tokenizer.decode(ids[0, width:])


READ = ["the cat sat on the mat", "I like helping people", "what do you think of it today"]
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
    means = measure_means(model, text_rows(model, READ))
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
    rows = text_rows(model, READ)
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
    means = measure_means(tiny_llama, text_rows(tiny_llama, READ))
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


@pytest.mark.real
def test_identity_is_identical_and_keeping_nothing_repeats_the_last_word(smollm2):
    plain: Any = plain_model(smollm2)
    ids = torch.tensor([smollm2.tokenizer("The opposite of hot is")["input_ids"]])
    with torch.no_grad():
        before = plain(ids).logits
        with corrupted(smollm2, parse_program("0-29", 30)):
            assert torch.equal(plain(ids).logits, before)
    said = complete_prompts(
        smollm2, [parse_program("[]", 30)], ["The opposite of hot is"], max_new_tokens=3
    )
    assert said[0]["text"].split() == ["is", "is", "is"]
