"""What steering adds, token by token, under every way of decoding.

It is read from outside: what block 2 receives less what block 1 put out.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from saesteer.models import wrap_model
from saesteer.models.loading import plain_model
from saesteer.steering import SteeringMask, SteeringVector
from saesteer.utils.errors import HookError

WIDTH, NEW, END = 8, 6, 1
FIRST = {"all": 0, "from_last_prompt_token": WIDTH - 1, "generated": WIDTH}
STRENGTHS = (3.0, -2.0, 0.0)
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {"use_cache": True},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "none": {"use_cache": False},
}
DECODING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}
DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(1))


def vector_of(positions: str = "all") -> SteeringVector:
    site = "blocks.1.hook_resid_post"
    return SteeringVector.from_raw(DIRECTION, site=site, model="tiny", positions=positions)


def make_other(name: str) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "bos_token_id": 0,
        "eos_token_id": END, "pad_token_id": END, "initializer_range": 0.4,
    }  # fmt: skip
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
    }
    if name == "mamba":
        made: Any = tf.MambaForCausalLM(tf.MambaConfig(**common, state_size=8))
    elif name == "lfm2":
        kinds = ["conv", "full_attention", "conv"]
        config = tf.Lfm2Config(**common, **heads, layer_types=kinds, block_multiple_of=16)
        made = tf.Lfm2ForCausalLM(config)
    else:
        own: dict[str, Any] = {"lru_width": 32, "attention_window_size": 8}
        made = tf.RecurrentGemmaForCausalLM(tf.RecurrentGemmaConfig(**common, **heads, **own))
    made.config.architectures = [type(made).__name__]
    return made


@pytest.fixture(scope="module")
def model_named(llama, gpt2, tokenizer):
    made: dict[str, Any] = {"llama": llama, "gpt2": gpt2}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = wrap_model(make_other(name), tokenizer)
        return made[name]

    return get


@pytest.fixture
def prompt(random_ids):
    ids, mask = random_ids(3, WIDTH, seed=2), torch.ones(3, WIDTH, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :1] = 0
    return ids, mask


@contextmanager
def additions(model: Any):
    """Yield a list that takes, pass by pass, what was added behind block 1."""
    plain = plain_model(model)
    blocks: Any = plain.get_submodule(model.adapter.component_mapping["blocks"].name)
    put_out: list[torch.Tensor] = []
    passes: list[torch.Tensor] = []

    def leaving(module: Any, args: Any, output: Any) -> None:
        put_out.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    def entering(module: Any, args: Any, kwargs: Any) -> None:
        received = args[0] if args else kwargs["hidden_states"]
        passes.append(received.detach() - put_out.pop())

    handles = [
        blocks[1].register_forward_hook(leaving),
        blocks[2].register_forward_pre_hook(entering, with_kwargs=True),
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def generated(model: Any, ids: torch.Tensor, mask: torch.Tensor, **how: Any) -> torch.Tensor:
    torch.manual_seed(5)
    plain: Any = plain_model(model)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": END} | how
    return plain.generate(input_ids=ids, attention_mask=mask, **settings)


@pytest.mark.parametrize("positions", FIRST)
@pytest.mark.parametrize("decoding", DECODING)
@pytest.mark.parametrize(
    ("name", "cache"),
    [(n, c) for n in ("llama", "gpt2") for c in CACHES]
    + [(n, c) for n in ("mamba", "lfm2", "recurrentgemma") for c in ("dynamic", "none")],
)
def test_every_step_of_every_row_gets_what_it_should(
    model_named, prompt, name, cache, decoding, positions
):
    model, (ids, mask) = model_named(name), prompt
    how = DECODING[decoding]
    times = max(how.get("num_beams", 1), how.get("num_return_sequences", 1))
    with additions(model) as passes, vector_of(positions).steer(model, STRENGTHS, "raw"):
        generated(model, ids, mask, **CACHES[cache], **how)
    whole = cache == "none"
    widths = [WIDTH + step if whole or step == 0 else 1 for step in range(NEW)]
    assert [p.shape[:2] for p in passes] == [(3 * times, width) for width in widths]
    unit = DIRECTION / DIRECTION.norm()
    real = torch.cat([mask, torch.ones(3, NEW, dtype=torch.long)], dim=1)
    for step, added in enumerate(passes):
        columns = torch.arange(WIDTH + step)[-added.shape[1] :]
        chosen = (columns >= FIRST[positions]) & real[:, columns].bool()
        expected = chosen[..., None] * torch.tensor(STRENGTHS)[:, None, None] * unit
        expected = expected.repeat_interleave(times, dim=0)
        torch.testing.assert_close(added, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", FIRST)
@pytest.mark.parametrize(
    "how", ["plain", "look-up", "assistant", "itself", "chunks", "look-up sampled"]
)
def test_candidates_and_chunks_are_steered_as_plain_decoding_is(
    llama, gpt2, second_llama, positions, how
):
    # Words that come again, so that look-up finds candidates.
    ids = torch.tensor([[9, 20, 33, 41, 20, 33, 17, 20]])
    settings: dict[str, Any] = {
        "plain": {},
        "look-up": {"prompt_lookup_num_tokens": 3},
        "assistant": {"assistant_model": plain_model(second_llama)},
        "itself": {"assistant_model": plain_model(llama)},
        "chunks": {"prefill_chunk_size": 3},
        "look-up sampled": {"prompt_lookup_num_tokens": 3, "do_sample": True, "top_k": 1},
    }[how]
    seen: list[torch.Tensor] = []
    note = plain_model(llama).register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["position_ids"][0]), with_kwargs=True
    )
    with additions(llama) as passes, vector_of(positions).steer(llama, 3.0, "raw"):
        tokens = generated(llama, ids, torch.ones_like(ids), **{"do_sample": False} | settings)
    note.remove()
    with vector_of(positions).steer(llama, 3.0, "raw", prompt_length=WIDTH):
        expected = generated(llama, ids, torch.ones_like(ids), do_sample=False, use_cache=False)
    assert torch.equal(tokens, expected)
    for columns, added in zip(seen, passes, strict=True):
        wanted = (columns >= FIRST[positions]) * 3.0
        torch.testing.assert_close(added[0].norm(dim=-1), wanted, rtol=0, atol=1e-4)
    ran = sum(len(columns) for columns in seen)
    if how == "look-up":
        assert ran > WIDTH + NEW - 1  # candidates were taken back


def test_a_second_turn_in_the_same_block_has_its_own_prompt(llama, random_ids):
    first, second = random_ids(1, WIDTH, seed=3), random_ids(1, 5, seed=4)
    with additions(llama) as passes, vector_of("generated").steer(llama, 3.0, "raw"):
        out: Any = generated(
            llama, first, torch.ones_like(first), return_dict_in_generate=True, do_sample=False
        )
        whole = torch.cat([out.sequences, second], dim=1)
        del passes[:]
        cache = next(value for name, value in out.items() if hasattr(value, "get_seq_length"))
        name = "cache" if "cache" in out else "past_key_values"
        again = generated(llama, whole, torch.ones_like(whole), do_sample=False, **{name: cache})
    # The last token of the first turn has not been read yet.
    assert [p.norm(dim=-1).round().tolist()[0] for p in passes] == [[0.0] * 6, *[[3.0]] * (NEW - 1)]
    assert again.shape[1] == whole.shape[1] + NEW


def test_a_prompt_cached_before_goes_on_where_it_ended(model_named, random_ids):
    ids = random_ids(2, WIDTH, seed=6)
    for name in ("llama", "mamba"):
        model = model_named(name)
        plain: Any = plain_model(model)
        with torch.no_grad(), additions(model) as passes:
            with vector_of("generated").steer(model, 3.0, "raw"):
                out = plain(ids, use_cache=True)
                key = next(k for k, v in out.items() if hasattr(v, "get_seq_length"))
                for _ in range(2):
                    plain(ids[:, :1], **{key: out[key]}, use_cache=True)
        assert [p.norm(dim=-1).round()[0, -1].item() for p in passes] == [0.0, 3.0, 3.0]


@pytest.mark.parametrize(
    "beyond",
    [
        {"attention_mask": torch.ones(1, 5)},
        {"position_ids": torch.tensor([[4]])},
        {"cache_position": torch.tensor([4])},
    ],
)
def test_a_pass_that_goes_on_without_a_cache_is_refused(beyond):
    step = {"input_ids": torch.ones(1, 1, dtype=torch.long)}
    SteeringMask().observe(torch.nn.Identity(), (), step)
    with pytest.raises(HookError, match="no cache"):
        SteeringMask().observe(torch.nn.Identity(), (), step | beyond)


def test_generate_that_goes_on_without_a_cache_is_refused():
    mask, ids = SteeringMask(), torch.ones(1, WIDTH, dtype=torch.long)
    mask.begin(WIDTH, 1)
    mask.observe(torch.nn.Identity(), (), {"input_ids": ids})
    with pytest.raises(HookError, match="use_cache=False"):
        mask.observe(torch.nn.Identity(), (), {"input_ids": ids[:, :1]})


def test_a_state_of_unknown_length_is_refused_and_the_attention_mask_tells(model_named, random_ids):
    model, ids = model_named("mamba"), random_ids(1, WIDTH, seed=7)
    plain: Any = plain_model(model)
    with torch.no_grad():
        out = plain(ids, use_cache=True)
        key = next(k for k, v in out.items() if hasattr(v, "get_seq_length"))
        step = {"input_ids": ids[:, :1], key: out[key]}
        with pytest.raises(HookError, match="attention_mask"), vector_of().steer(model, 1.0, "raw"):
            plain(**step)
    mask = SteeringMask("generated", prompt_length=WIDTH)
    mask.observe(plain, (), step | {"attention_mask": torch.ones(1, WIDTH + 1)})
    assert mask.past == WIDTH


def test_a_site_that_reached_no_token_is_an_error(llama, random_ids):
    ids, plain = random_ids(2, WIDTH, seed=8), plain_model(llama)
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    with torch.no_grad():
        for positions in ("generated", nothing):
            with (
                pytest.raises(HookError, match=r"blocks\.1\.hook_resid_post reached no token"),
                vector_of().steer(llama, 1.0, "raw", positions=positions),
            ):
                plain(ids)
            with vector_of().steer(llama, 0.0, "raw", positions=positions):
                plain(ids)
        with vector_of().steer(llama, 1.0, "raw", positions="generated", prompt_length=4):
            plain(ids)
    # One token alone is generated and never read: there is nothing to be told of.
    with vector_of("generated").steer(llama, 1.0, "raw"):
        generated(llama, ids, torch.ones_like(ids), max_new_tokens=1, min_new_tokens=1)


def test_generate_is_itself_again_after_the_block(llama, random_ids):
    plain: Any = plain_model(llama)
    ids = random_ids(1, WIDTH, seed=9)
    with vector_of().steer(llama, 1.0, "raw"):
        with vector_of().steer(llama, 1.0, "raw"):
            generated(llama, ids, torch.ones_like(ids))
        assert "generate" in vars(plain)
        with pytest.raises(TypeError):
            plain.generate(input_ids=ids, max_new_tokens="many")
        generated(llama, ids, torch.ones_like(ids))
    assert "generate" not in vars(plain)
