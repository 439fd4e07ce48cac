"""What steering adds, token by token, under every way of decoding.

It is read from outside: what block 2 receives less what block 1 put out.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from saesteer.models.compat import cache_argument, find_cache
from saesteer.models.loading import plain_model
from saesteer.steering import SteeringMask, SteeringVector
from saesteer.steering.positions import _real_columns
from saesteer.utils.errors import HookError, SteeringError
from tests.hybrids import hybrid

WIDTH, NEW, END = 8, 6, 2
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
HYBRIDS = ("mamba", "mamba2", "lfm2", "recurrentgemma", "qwen35", "falconh1", "jamba")
DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(1))
NOWHERE = torch.nn.Identity()


def vector_of(positions: str = "all") -> SteeringVector:
    site = "blocks.1.hook_resid_post"
    return SteeringVector.from_raw(DIRECTION, site=site, model="tiny", positions=positions)


@pytest.fixture(scope="module")
def model_named(tiny_model, tiny_tokenizer):
    return lambda name: hybrid(name, tiny_tokenizer) if name in HYBRIDS else tiny_model(name)


@pytest.fixture
def prompt(random_ids):
    ids, mask = random_ids(3, WIDTH, seed=2), torch.ones(3, WIDTH, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :1] = 0
    return ids, mask


@contextmanager
def additions(model: Any):
    """Yield a list that takes, pass by pass, what was added behind block 1."""
    blocks: Any = plain_model(model).get_submodule(model.adapter.component_mapping["blocks"].name)
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


def lengths(passes: list[torch.Tensor]) -> list[list[float]]:
    """Return how much was added at each column of the first row, pass by pass."""
    return [p.norm(dim=-1).round()[0].tolist() for p in passes]


@pytest.mark.parametrize("positions", FIRST)
@pytest.mark.parametrize(
    ("name", "cache"),
    [(n, c) for n in ("llama", "gpt2") for c in CACHES]
    + [(n, c) for n in HYBRIDS for c in ("dynamic", "none")],
)
def test_every_step_of_every_row_gets_what_it_should(model_named, prompt, name, cache, positions):
    model, (ids, mask) = model_named(name), prompt
    unit = DIRECTION / DIRECTION.norm()
    real = torch.cat([mask, torch.ones(3, NEW, dtype=torch.long)], dim=1)
    widths = [WIDTH + step if cache == "none" or step == 0 else 1 for step in range(NEW)]
    decodings = [DECODING["beams"]] if name in HYBRIDS else DECODING.values()
    for how in decodings:
        times = max(how.get("num_beams", 1), how.get("num_return_sequences", 1))
        with additions(model) as passes, vector_of(positions).steer(model, STRENGTHS, "raw"):
            generated(model, ids, mask, **CACHES[cache], **how)
        assert [p.shape[:2] for p in passes] == [(3 * times, width) for width in widths]
        for step, added in enumerate(passes):
            columns = torch.arange(WIDTH + step)[-added.shape[1] :]
            chosen = (columns >= FIRST[positions]) & real[:, columns].bool()
            expected = chosen[..., None] * torch.tensor(STRENGTHS)[:, None, None] * unit
            expected = expected.repeat_interleave(times, dim=0)
            torch.testing.assert_close(added, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", FIRST)
@pytest.mark.parametrize("name", ["llama", "mamba", "jamba"])
def test_generating_equals_one_pass_over_it_all(model_named, positions, name, random_ids):
    model, ids = model_named(name), random_ids(3, WIDTH, seed=2)
    plain = plain_model(model)
    vector = vector_of(positions)
    with vector.steer(model, 3.0, "raw"):
        how: Any = {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        out: Any = generated(model, ids, torch.ones_like(ids), **how)
    written = torch.zeros_like(out.sequences, dtype=torch.bool)
    written[:, FIRST[positions] :] = True
    where: Any
    for where in ({"positions": written}, {"prompt_length": WIDTH}):
        with vector.steer(model, 3.0, "raw", **where), torch.no_grad():
            logits = plain(out.sequences, use_cache=False).logits
        for step, scores in enumerate(out.scores):
            expected = torch.where(scores.isinf(), scores, logits[:, WIDTH - 1 + step])
            torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", *HYBRIDS])
def test_the_bridges_own_generate_is_steered_the_same(model_named, name, random_ids):
    model, ids = model_named(name), random_ids(1, 7, seed=4)
    how: Any = {"stop_at_eos": False, "return_type": "tokens", "verbose": False}
    for strength in (0.0, 3.0):
        with vector_of().steer(model, strength, "raw"):
            end = {"eos_token_id": None, "min_new_tokens": None}
            expected = generated(model, ids, torch.ones_like(ids), do_sample=False, **end)
        for cached in (True, False):
            with vector_of().steer(model, strength, "raw"):
                got = model.generate(
                    ids, max_new_tokens=NEW, do_sample=False, use_past_kv_cache=cached, **how
                )
            assert torch.equal(got, expected)


@pytest.mark.parametrize("positions", FIRST)
@pytest.mark.parametrize("how", ["look-up", "assistant", "itself", "chunks", "look-up sampled"])
def test_candidates_and_chunks_are_steered_as_plain_decoding_is(
    llama, second_llama, positions, how
):
    # Words that come again, so that look-up finds candidates.
    ids = torch.tensor([[9, 20, 33, 41, 20, 33, 17, 20]])
    settings: dict[str, Any] = {
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
    if how == "look-up":
        # Candidates were taken back.
        assert sum(len(columns) for columns in seen) > WIDTH + NEW - 1


def test_each_prompt_in_a_block_is_a_new_one(llama, random_ids):
    first, second = random_ids(1, WIDTH, seed=3), random_ids(1, 5, seed=4)
    ones = torch.ones_like(first)
    with additions(llama) as passes, vector_of("generated").steer(llama, 3.0, "raw"):
        out: Any = generated(llama, first, ones, return_dict_in_generate=True, do_sample=False)
        del passes[:]
        # A second turn goes on with the cache of the first.
        whole = torch.cat([out.sequences, second], dim=1)
        held = cache_argument(plain_model(llama), find_cache(out))
        generated(llama, whole, torch.ones_like(whole), do_sample=False, **held)
        # The last token of the first turn has not been read yet.
        assert lengths(passes) == [[0.0] * 6, *[[3.0]] * (NEW - 1)]
        for cached in (True, False):
            del passes[:]
            generated(llama, second, ones[:, :5], do_sample=False, use_cache=cached)
            assert lengths(passes)[:2] == [[0.0] * 5, [3.0] if cached else [0.0] * 5 + [3.0]]


def test_a_prompt_cached_before_goes_on_where_it_ended(model_named, random_ids):
    ids = random_ids(2, WIDTH, seed=6)
    for name in ("llama", "mamba"):
        model = model_named(name)
        plain: Any = plain_model(model)
        with torch.no_grad(), additions(model) as passes:
            with vector_of("generated").steer(model, 3.0, "raw"):
                held = cache_argument(plain, find_cache(plain(ids, use_cache=True)))
                for _ in range(2):
                    plain(ids[:, :1], **held, use_cache=True)
        assert [added[-1] for added in lengths(passes)] == [0.0, 3.0, 3.0]


def test_a_text_that_is_the_last_one_plus_a_token_needs_a_word(llama, random_ids):
    ids, model, vector = random_ids(1, 5), plain_model(llama), vector_of("from_last_prompt_token")
    with torch.no_grad(), additions(llama) as passes:
        with vector.steer(llama, 3.0, "raw") as steering:
            model(ids[:, :4])
            model(ids)
            steering.new_prompt()
            model(ids)
        with vector.steer(llama, 3.0, "raw", prompt_length=4):
            # Embeddings tell as much as ids.
            model(inputs_embeds=model.get_input_embeddings()(ids))
    alone, continued = [0.0] * 4 + [3.0], [0.0] * 3 + [3.0] * 2
    assert lengths(passes) == [[0.0] * 3 + [3.0], continued, alone, continued]


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
    SteeringMask().observe(NOWHERE, (), step)
    with pytest.raises(HookError, match="no cache"):
        SteeringMask().observe(NOWHERE, (), step | beyond)
    mask, ids = SteeringMask(), torch.ones(1, WIDTH, dtype=torch.long)
    mask.begin(WIDTH, 1)
    mask.observe(NOWHERE, (), {"input_ids": ids})
    with pytest.raises(HookError, match="use_cache=False"):
        mask.observe(NOWHERE, (), {"input_ids": ids[:, :1]})
    with pytest.raises(HookError, match="input_ids"):
        SteeringMask().observe(NOWHERE, (), {})


def test_a_state_of_unknown_length_is_refused_and_the_attention_mask_tells(model_named, random_ids):
    model, ids = model_named("mamba"), random_ids(1, WIDTH, seed=7)
    plain: Any = plain_model(model)
    with torch.no_grad():
        held = cache_argument(plain, find_cache(plain(ids, use_cache=True)))
        step = {"input_ids": ids[:, :1], **held}
        with pytest.raises(HookError, match="attention_mask"), vector_of().steer(model, 1.0, "raw"):
            plain(**step)
    mask = SteeringMask("generated", prompt_length=WIDTH)
    mask.observe(plain, (), step | {"attention_mask": torch.ones(1, WIDTH + 1)})
    assert mask.past == WIDTH


@pytest.mark.parametrize("name", ["past_key_values", "of_a_later_day"])
def test_padding_in_the_middle_of_generating_is_left_alone(name):
    class Cache:
        def get_seq_length(self):
            return 4

    def chosen(mask: SteeringMask) -> Any:
        found = mask.mask(2, torch.device("cpu"))
        return None if found is None else found[..., 0].tolist()

    mask = SteeringMask()
    ids = torch.ones(2, 4, dtype=torch.long)
    mask.observe(NOWHERE, (), {"input_ids": ids, "attention_mask": ids})
    assert chosen(mask) == [[False] * 3 + [True]] * 2
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    step = {"input_ids": ids[:, :1], "attention_mask": attention, name: Cache()}
    mask.observe(NOWHERE, (), step)
    assert chosen(mask) == [[True], [False]]
    mask.observe(NOWHERE, (), step | {"attention_mask": torch.ones(2, 5)})
    assert chosen(mask) is None


def test_a_four_dimensional_mask_tells_padding_by_its_diagonal():
    keys = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    causal = torch.ones(4, 4).tril().bool() & keys[:, None]
    additive = torch.where(causal[:, None], 0.0, -1e9)
    for mask in (causal[:, None], additive, {"full": causal[:, None]}):
        real = _real_columns(mask, 0, 4)
        assert real is not None
        assert torch.equal(real, keys)
    assert _real_columns(causal[:, None, 3:], 3, 1) is None


def test_a_site_that_reached_no_token_and_a_mask_that_runs_out_are_errors(llama, random_ids):
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
    with (
        pytest.raises(SteeringError, match="covers"),
        vector_of().steer(llama, 0.5, "raw", positions=~nothing),
    ):
        generated(llama, ids, torch.ones_like(ids))


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
