"""Layer programs, padded and with a cache, against Hugging Face models of those layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.family import family_states
from saesteer.corruption.fitted import fit_linear_maps
from saesteer.corruption.program import LinearSpan, parse_program
from saesteer.models import plain_model, wrap_model
from saesteer.models.tokens import TokenBatch, TokenRow
from saesteer.models.unembed import Unembedding
from saesteer.utils.errors import ConfigError, ModelError
from tests.hybrids import HYBRIDS, hybrid, reordered

PROGRAMS = ("keep 2, repeat 1 x2", "reverse")
GREEDY = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}


@pytest.fixture
def tiny(tiny_tokenizer):
    """Return a function from a name to a tiny model."""
    return lambda name: hybrid(name, tiny_tokenizer)


@pytest.fixture
def padded(some_ids) -> TokenBatch:
    """Two rows, the first shorter and padded on the left."""
    ids = some_ids(rows=2, width=14)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return TokenBatch(ids * mask, mask, mask.bool())


@pytest.mark.parametrize("name", [*HYBRIDS, "cohere", "recurrentgemma", "llama", "gemma2"])
def test_a_program_is_the_model_of_those_layers(name, tiny, padded):
    model = tiny(name)
    plain: Any = plain_model(model)
    for text in PROGRAMS:
        program = parse_program(text, len(plain.base_model.layers))
        if name == "recurrentgemma" and len(set(program.steps)) < len(program.steps):
            with pytest.raises(ModelError, match="cannot run a layer twice with a KV cache"):
                with corrupted(model, program):
                    pass
            continue
        reference = reordered(plain, program.steps)
        # Without a cache: some of Hugging Face's cannot do without a layer of attention.
        greedy = reference.generate(**padded.inputs, **GREEDY, use_cache=False)
        with torch.no_grad():
            wanted = reference(**padded.inputs, use_cache=False).logits
            with corrupted(model, program):
                got = plain(**padded.inputs, use_cache=False).logits
                said = plain.generate(**padded.inputs, **GREEDY)
        torch.testing.assert_close(got[padded.span], wanted[padded.span], atol=1e-5, rtol=1e-4)
        assert torch.equal(said, greedy)


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_family_in_one_walk_and_linear_maps_with_a_cache(name, tiny, padded):
    model = tiny(name)
    plain: Any = plain_model(model)
    n_layers = len(plain.base_model.layers)
    span = LinearSpan(0, 1)
    rows = [TokenRow(tuple(range(3 + i, 23 + i)), (True,) * 20) for i in range(40)]
    maps = fit_linear_maps(model, [span], rows)
    texts = ("keep 0", "keep 1", "skip 1", "reverse", "repeat 0 x2", "linear 0-1")
    programs = [parse_program(text, n_layers) for text in texts]
    unembed = Unembedding(model).logits
    states = family_states(model, programs, padded, padded.span, maps=maps)
    for program, state in zip(programs, states, strict=True):
        with corrupted(model, program, maps=maps), torch.no_grad():
            wanted = plain(**padded.inputs, use_cache=False).logits[padded.span]
            cached = plain.generate(**padded.inputs, **GREEDY)
            assert torch.equal(cached, plain.generate(**padded.inputs, **GREEDY, use_cache=False))
        torch.testing.assert_close(unembed(state), wanted, atol=1e-5, rtol=1e-4)
    first = torch.where(padded.span.cumsum(dim=1) == 1, 1, 0).bool()
    seen = []
    handle = plain.base_model.layers[2].register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    with corrupted(model, programs[-1], maps=maps), torch.no_grad():
        plain(**padded.inputs)
    handle.remove()
    mean = maps[span].first.expand(2, -1)
    torch.testing.assert_close(seen[0][first], mean)


def test_a_layer_that_lives_on_another_ones_keys_is_missed_in_one_sentence(tiny, some_ids):
    model, ids = tiny("gemma4-shared"), some_ids()
    plain: Any = plain_model(model)
    wanted = plain.generate(ids, **GREEDY)
    with corrupted(model, parse_program("all", 6)):
        assert torch.equal(plain.generate(ids, **GREEDY), wanted)
    with pytest.raises(ModelError, match=r"'skip 3' cannot run .* misses what another"):
        with corrupted(model, parse_program("skip 3", 6)):
            pass


def test_a_cache_of_another_program_is_refused(tiny, some_ids):
    model, ids = tiny("lfm2"), some_ids()
    plain: Any = plain_model(model)
    with corrupted(model, parse_program("repeat 1 x2", 4)), torch.no_grad():
        cache = plain(ids, use_cache=True).past_key_values
    for text in ("skip 1", "repeat 1 x2, repeat 0 x2"):
        with corrupted(model, parse_program(text, 4)), torch.no_grad():
            with pytest.raises(ConfigError, match="filled under another layer program"):
                plain(ids, past_key_values=cache)
    with corrupted(model, parse_program("all, all", 4)), torch.no_grad():
        whole = plain_model(tiny("lfm2"))
        with pytest.raises(ConfigError, match="filled outside this layer program"):
            whole(ids, past_key_values=_filled(whole))


def _filled(plain):
    from transformers import DynamicCache

    cache = DynamicCache(config=plain.config)
    keys = torch.ones(2, 2, 3, 8)
    cache.update(keys, keys, 1)
    return cache


@pytest.mark.parametrize("kind", ["indexed", "scaled"])
def test_a_model_that_is_more_than_its_blocks_is_refused(kind, tiny_tokenizer, some_ids):
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_outputs import BaseModelOutputWithPast
    from transformers.models.llama.modeling_llama import LlamaModel

    class Unusual(LlamaModel):
        def forward(self, input_ids, **_):
            hidden = self.embed_tokens(input_ids)
            rotary = self.rotary_emb(hidden, torch.arange(input_ids.shape[1])[None])
            indexed = kind == "indexed"
            blocks = [self.layers[i] for i in range(2)] if indexed else list(self.layers)
            for block in blocks:
                hidden = block(hidden, position_embeddings=rotary)
                hidden = hidden if indexed else 1.5 * hidden
            return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))

    config = LlamaConfig(
        vocab_size=420, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    model = wrap_model(LlamaForCausalLM(config), tiny_tokenizer())
    plain_model(model).model.__class__ = Unusual
    why = "does not call its blocks" if kind == "indexed" else "logits differ by"
    with pytest.raises(ModelError, match=f"cannot be run one by one .*{why}"):
        with corrupted(model, parse_program("skip 0", 2)):
            pass


def test_where_the_bridge_cannot_run_the_plain_model_still_does(tiny, some_ids):
    model = tiny("qwen35")
    with corrupted(model, parse_program("skip 1", 4)), torch.no_grad():
        plain_model(model)(some_ids())
        with pytest.raises(ModelError, match="cannot be run one by one"):
            model.original_model(some_ids())
