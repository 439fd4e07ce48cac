"""Interventions while generating: KV cache, padding, batches and schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from saesteer.models import plain_model, resolve_target, wrap_model
from saesteer.models.compat import cache_argument, find_cache
from saesteer.probes import Intervention, intervene, parse_schedule
from saesteer.steering import generate
from saesteer.utils.errors import HookError, SteeringError

PROMPTS = ["The cat sat on the mat", "What do you think about the weather today", "I like"]


def continued(model, ids, n, *, cached, context):
    """Generate greedily by hand, with a cache or without one."""
    plain = plain_model(model)
    cache, tokens = None, ids
    with torch.inference_mode(), context:
        for _ in range(n):
            if cached:
                fresh = tokens if cache is None else tokens[:, -1:]
                out = plain(input_ids=fresh, **(cache or {}), use_cache=True)
                cache = cache_argument(plain, find_cache(out))
            else:
                out = plain(input_ids=tokens, use_cache=False)
            tokens = torch.cat([tokens, out.logits[:, -1:].argmax(-1)], dim=1)
    return tokens, out.logits[:, -1]


def several(probe_vector, arch, mode: Any = "flip", amount=2.0):
    return [Intervention(probe_vector(arch, layer), mode, amount) for layer in (0, 2)]


@pytest.mark.parametrize("policy", ["once", "compound"])
@pytest.mark.parametrize("positions", ["all", "from_last_prompt_token", "generated"])
def test_a_cache_changes_nothing(arch, tiny_model, probe_vector, policy, positions):
    model = tiny_model(arch)
    ids = torch.randint(8, 300, (2, 7), generator=torch.Generator().manual_seed(1))
    items = several(probe_vector, arch)

    def context():
        return intervene(model, items, policy=policy, positions=positions)

    cached, logits = continued(model, ids, 8, cached=True, context=context())
    plain, expected = continued(model, ids, 8, cached=False, context=context())
    assert torch.equal(cached, plain)
    assert logits == pytest.approx(expected, abs=5e-3)


def test_a_schedule_is_the_same_with_a_cache_and_without(arch, tiny_model, probe_vector):
    model = tiny_model(arch)
    ids = torch.randint(8, 300, (1, 5), generator=torch.Generator().manual_seed(2))
    vectors = [probe_vector(arch, 0), probe_vector(arch, 1)]
    items = parse_schedule("0-3:set=-20,4-:set=20", vectors)
    cached, logits = continued(model, ids, 9, cached=True, context=intervene(model, items))
    plain, expected = continued(model, ids, 9, cached=False, context=intervene(model, items))
    assert torch.equal(cached, plain)
    assert logits == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("policy", ["once", "compound"])
def test_each_row_of_a_padded_batch_is_as_if_alone(arch, tiny_model, probe_vector, policy):
    model = tiny_model(arch)
    items = several(probe_vector, arch)

    def texts(prompts):
        with intervene(model, items, policy=policy, positions="all"):
            made = generate(model, prompts, max_new_tokens=8, chat=False)
        return [record.text for record in made.records]

    assert texts(PROMPTS) == [texts([prompt])[0] for prompt in PROMPTS]


def test_a_second_batch_is_a_new_prompt(tiny_model, probe_vector):
    model = tiny_model("llama")
    items = [
        *parse_schedule("0-2:set=-30,3-:set=30", [probe_vector()]),
        Intervention(probe_vector(layer=2, seed=4), "flip"),
    ]

    def texts(rows):
        with intervene(model, items):
            made = generate(model, PROMPTS, max_new_tokens=8, chat=False, max_batch_rows=rows)
        return [record.text for record in made.records]

    assert texts(1) == texts(3)


def test_windows_begin_and_end_where_they_say(tiny_model, probe_vector):
    model, vector = tiny_model("llama"), probe_vector()
    seen = []

    items = parse_schedule("0-1:set=5,3-4:set=-5", [vector])
    module = resolve_target(model, vector.site).module
    with intervene(model, items, positions="from_last_prompt_token"):
        handle = module.register_forward_hook(
            lambda _m, _i, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())
        )
        try:
            ids = torch.randint(8, 300, (1, 4), generator=torch.Generator().manual_seed(3))
            plain: Any = plain_model(model)
            plain.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
        finally:
            handle.remove()
    v = vector.direction / vector.direction.norm()
    # One pass per token: the last position of each decides that token.
    alphas = [float(hidden[0, -1] @ v) for hidden in seen]
    assert alphas[:2] == pytest.approx([5.0, 5.0], abs=1e-3)
    assert alphas[3:5] == pytest.approx([-5.0, -5.0], abs=1e-3)
    for free in (alphas[2], alphas[5]):
        assert min(abs(free - 5.0), abs(free + 5.0)) > 1e-2
    # Prompt tokens before the last are left alone by these positions.
    assert abs(float(seen[0][0, 0] @ v) - 5.0) > 1e-2


def test_nothing_is_changed_where_the_amount_says_so(arch, tiny_model, probe_vector):
    model = tiny_model(arch)
    base = generate(model, PROMPTS, max_new_tokens=8, chat=False)
    items = several(probe_vector, arch, "add", 0.0)
    with intervene(model, items):
        same = generate(model, PROMPTS, max_new_tokens=8, chat=False)
    assert same == base


def test_it_works_with_the_chat_template(tiny_model, probe_vector):
    model = tiny_model("llama")
    with intervene(model, several(probe_vector, "llama", "set", 40.0)):
        made = generate(model, PROMPTS, max_new_tokens=6)
    assert [r.text for r in made.records] != [
        r.text for r in generate(model, PROMPTS, max_new_tokens=6).records
    ]


MODES = [("flip", 2.0), ("ablate", 1.0), ("add", 3.0), ("set", 2.0)]
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {"use_cache": True},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "look-up": {"prompt_lookup_num_tokens": 3},
    "chunks": {"prefill_chunk_size": 3},
}


@pytest.fixture(scope="module")
def tiny_mamba(tiny_tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3)
    config.architectures = ["MambaForCausalLM"]
    return wrap_model(MambaForCausalLM(config), tokenizer)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode[0])
@pytest.mark.parametrize(
    ("name", "cache"),
    [("mamba", "dynamic")] + [(n, c) for n in ("llama", "gpt2") for c in (*CACHES, "beams")],
)
def test_clean_readings_are_the_same_with_any_cache(
    tiny_model, tiny_mamba, probe_vector, name, cache, mode
):
    model = tiny_mamba if name == "mamba" else tiny_model(name)
    plain: Any = plain_model(model)
    ids = torch.tensor([[40, 51, 62, 73, 51, 62, 44, 51]])
    vectors = [probe_vector("llama" if name == "mamba" else name, layer) for layer in (0, 2)]
    if name == "mamba":
        vectors = [replace(vector, model_fingerprint=None) for vector in vectors]
    items = [Intervention(vector, *mode) for vector in vectors]
    common = {
        "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0,
        "output_scores": True, "return_dict_in_generate": True,
    }  # fmt: skip
    how = {"num_beams": 3} if cache == "beams" else {}

    def generated(**settings: Any) -> Any:
        with intervene(model, items, policy="once", positions="all"):
            return plain.generate(ids, attention_mask=torch.ones_like(ids), **common, **settings)

    expected = generated(use_cache=False, **how)
    unchanged = plain.generate(ids, attention_mask=torch.ones_like(ids), **common, **how)
    assert not torch.equal(expected.scores[0], unchanged.scores[0])
    if cache == "beams":
        with pytest.raises(SteeringError, match="use_cache=False"):
            generated(**how)
        return
    got = generated(**CACHES[cache])
    assert torch.equal(got.sequences, expected.sequences)
    for one, other in zip(got.scores, expected.scores, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-3)


def test_an_intervention_that_reaches_no_token_is_an_error(tiny_model, probe_vector):
    model = tiny_model("llama")
    ids = torch.tensor([[40, 51, 62, 73]])
    item = Intervention(probe_vector("llama", 1), "flip", 1.0)
    with (
        pytest.raises(HookError, match="'generated' reached no token"),
        intervene(model, item, positions="generated"),
    ):
        plain_model(model)(ids, use_cache=False)
