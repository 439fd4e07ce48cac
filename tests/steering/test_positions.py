"""The same steering with a KV cache and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models.compat import cache_argument, find_cache
from saesteer.models.loading import plain_model
from saesteer.steering import SteeringMask
from saesteer.steering.positions import _real_columns
from saesteer.utils.errors import HookError, SteeringError


def greedy(model, ids, mask, steps, **kwargs):
    """Return tokens and every step's scores from Hugging Face's own generate."""
    plain: Any = plain_model(model)
    out = plain.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=steps, min_new_tokens=steps,
        do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=1, **kwargs,
    )  # fmt: skip
    return out.sequences[:, ids.shape[1] :], torch.stack(out.scores)


@pytest.fixture
def prompt(random_ids):
    ids = random_ids(3, 8, seed=2)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask[2, :1] = 0
    return ids, mask


def test_the_bridges_own_generate_is_steered_the_same(llama, make_vector, random_ids):
    ids = random_ids(2, 6, seed=4)
    with make_vector().steer(llama, 0.5):
        expected = greedy(llama, ids, torch.ones_like(ids), 6)[0]
    how: dict[str, Any] = {
        "do_sample": False,
        "stop_at_eos": False,
        "return_type": "tokens",
        "verbose": False,
    }
    for cached in (True, False):
        with make_vector().steer(llama, 0.5):
            out = llama.generate(ids, max_new_tokens=6, use_past_kv_cache=cached, **how)
        assert torch.equal(out[:, 6:], expected)


@pytest.mark.parametrize(
    ("positions", "first"), [("from_last_prompt_token", 7), ("all", 0), ("generated", 8)]
)
def test_generating_equals_one_pass_over_it_all(llama, make_vector, positions, first, prompt):
    ids, mask = prompt
    vector = make_vector()
    with vector.steer(llama, 0.5, positions=positions):
        tokens, scores = greedy(llama, ids, mask, 6)
    whole = torch.cat([ids, tokens], dim=1)
    attention = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    written = torch.zeros_like(whole, dtype=torch.bool)
    written[:, first:] = True
    for arguments in ({"positions": written}, {"positions": positions, "prompt_length": 8}):
        with vector.steer(llama, 0.5, **arguments), torch.no_grad():
            logits = plain_model(llama)(whole, attention_mask=attention).logits
        for step in range(1, 6):
            expected = logits[:, 7 + step].clone()
            expected[:, 1] = scores[step][:, 1]  # generate forbids the end token here
            torch.testing.assert_close(scores[step], expected, rtol=1e-4, atol=1e-4)


def test_a_new_prompt_in_the_same_block_starts_afresh(llama, make_vector, random_ids):
    vector = make_vector()
    short, long = random_ids(2, 4, seed=5), random_ids(2, 9, seed=6)
    with vector.steer(llama, 0.5):
        first = greedy(llama, short, torch.ones_like(short), 4)[1]
        second = greedy(llama, long, torch.ones_like(long), 4)[1]
        third = greedy(llama, short, torch.ones_like(short), 4, use_cache=False)[1]
    with vector.steer(llama, 0.5):
        assert torch.equal(greedy(llama, long, torch.ones_like(long), 4)[1], second)
    torch.testing.assert_close(third, first, rtol=1e-4, atol=1e-4)


def test_a_text_that_is_the_last_one_plus_a_token_needs_a_word(llama, make_vector, random_ids):
    vector, ids = make_vector(), random_ids(1, 5)
    model = plain_model(llama)
    with torch.no_grad():
        with vector.steer(llama, 0.5):
            alone = model(ids).logits
        with vector.steer(llama, 0.5) as steering:
            model(ids[:, :4])
            continued = model(ids).logits
            model(ids[:, :4])
            steering.new_prompt()
            assert torch.equal(model(ids).logits, alone)
        with vector.steer(llama, 0.5, prompt_length=4):
            assert torch.equal(model(ids).logits, continued)
    assert not torch.allclose(continued, alone, atol=1e-3)


def test_a_statement_after_a_cached_prompt_is_steered(llama, make_vector, random_ids):
    ids, vector, model = random_ids(2, 9, seed=9), make_vector(), plain_model(llama)
    with torch.no_grad():
        with vector.steer(llama, 0.5, prompt_length=5):
            whole = model(ids).logits
        with vector.steer(llama, 0.5):
            prompt_out = model(ids[:, :5], use_cache=True)
            rest = model(ids[:, 5:], **cache_argument(model, find_cache(prompt_out))).logits
    torch.testing.assert_close(rest, whole[:, 5:], rtol=1e-4, atol=1e-4)


def test_embeddings_instead_of_ids_are_steered_the_same(llama, make_vector, prompt):
    ids, mask = prompt
    vector, model = make_vector(), plain_model(llama)
    with vector.steer(llama, 0.5), torch.no_grad():
        expected = model(ids, mask).logits  # positional arguments
        embedded = model(
            inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask
        ).logits
    torch.testing.assert_close(embedded, expected)


@pytest.mark.parametrize("name", ["past_key_values", "of_a_later_day"])
def test_padding_in_the_middle_of_generating_is_left_alone(name):
    mask = SteeringMask()
    ids = torch.ones(2, 4, dtype=torch.long)
    mask.observe(torch.nn.Identity(), (), {"input_ids": ids, "attention_mask": ids})
    assert mask.mask(2, torch.device("cpu"))[..., 0].tolist() == [[False] * 3 + [True]] * 2  # type: ignore[index]

    class Cache:
        def get_seq_length(self):
            return 4

    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    step = {"input_ids": ids[:, :1], "attention_mask": attention, name: Cache()}
    mask.observe(torch.nn.Identity(), (), step)
    assert mask.mask(2, torch.device("cpu"))[..., 0].tolist() == [[True], [False]]  # type: ignore[index]
    step["attention_mask"] = torch.ones(2, 5)
    mask.observe(torch.nn.Identity(), (), step)
    assert mask.mask(2, torch.device("cpu")) is None


def test_a_four_dimensional_mask_tells_padding_by_its_diagonal():
    keys = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    causal = torch.ones(4, 4).tril().bool() & keys[:, None]
    additive = torch.where(causal[:, None], 0.0, -1e9)
    for mask in (causal[:, None], additive, {"full": causal[:, None]}):
        real = _real_columns(mask, 0, 4)
        assert real is not None
        assert torch.equal(real, keys)
    assert _real_columns(causal[:, None, 3:], 3, 1) is None


def test_a_call_without_tokens_and_a_mask_that_runs_out_are_errors(llama, make_vector, prompt):
    with pytest.raises(HookError, match="input_ids"):
        SteeringMask().observe(torch.nn.Identity(), (), {})
    ids, mask = prompt
    written = torch.ones_like(ids, dtype=torch.bool)
    with (
        pytest.raises(SteeringError, match="covers"),
        make_vector().steer(llama, 0.5, positions=written),
    ):
        greedy(llama, ids, mask, 4)
