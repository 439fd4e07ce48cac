"""Edits along a direction: what changes, what does not, where, and while generating."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from saesteer.models import plain_model, resolve_target
from saesteer.steering import Ablate, Add, Flip, Set, generate, intervene, steer
from saesteer.utils.errors import HookError, MismatchError, SteeringError
from tests.hybrids import hybrid

IDS = torch.randint(8, 300, (2, 9), generator=torch.Generator().manual_seed(0))
ALPHA = torch.tensor([-2.0, 0.0, 3.0])
PROMPTS = ["The cat sat on the mat", "What do you think about the weather today", "I like"]
KINDS = {
    "flip": lambda vector: Flip(vector, 2.0),
    "ablate": Ablate,
    "add": lambda vector: Add(vector, 3.0),
    "set": lambda vector: Set(vector, 2.0),
}


def hidden_at(model, sites, inputs, context=None):
    """Return what leaves these blocks, edits included, and the logits."""
    caught = {}
    with ExitStack() as stack, torch.inference_mode():
        if context is not None:
            stack.enter_context(context)
        for site in sites:

            def keep(_m, _i, out, site=site):
                caught[site] = (out[0] if isinstance(out, tuple) else out).clone()

            module = resolve_target(model, site).module
            stack.callback(module.register_forward_hook(keep).remove)
        out = plain_model(model)(**inputs, use_cache=False)
    return [caught[site] for site in sites], out.logits


def split_along(x, vector):
    """Return alpha and what is orthogonal to v, in float64."""
    v = vector.direction.double() / vector.direction.double().norm()
    alpha = x.double() @ v
    return alpha, x.double() - alpha[..., None] * v


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda v: Flip(v), [2.0, 0.0, -3.0]),
        (lambda v: Flip(v, 20.0), [40.0, 0.0, -60.0]),
        (lambda v: Flip(v, 1.0, 1.0), [4.0, 2.0, -1.0]),
        (lambda v: Ablate(v), [0.0, 0.0, 0.0]),
        (lambda v: Ablate(v, 1.0), [1.0, 1.0, 1.0]),
        (lambda v: Add(v, 0.2), [-1.0, 1.0, 4.0]),
        (lambda v: Add(v, -1.5, "raw"), [-3.5, -1.5, 1.5]),
        (lambda v: Set(v, -7.0), [-7.0, -7.0, -7.0]),
    ],
)
def test_each_edit_does_what_its_name_says(vector_on, make, expected):
    assert make(vector_on()).target(ALPHA).tolist() == pytest.approx(expected)


def test_alpha_becomes_what_was_asked_and_the_rest_stays(arch, tiny_model, vector_on):
    model, vector, inputs = tiny_model(arch), vector_on(arch), {"input_ids": IDS}
    [before], _ = hidden_at(model, [vector.site], inputs)
    alpha, rest = split_along(before, vector)
    scale = float(before.abs().max()) * 20
    for edit in (Flip(vector, 20.0), *(make(vector) for make in KINDS.values())):
        [after], logits = hidden_at(model, [vector.site], inputs, intervene(model, edit))
        new, new_rest = split_along(after, vector)
        assert new == pytest.approx(edit.target(alpha), abs=3e-6 * scale)
        assert new_rest == pytest.approx(rest, abs=3e-6 * scale)
        assert torch.isfinite(logits).all()


def test_adding_is_steering_and_flipping_twice_is_where_one_began(llama, vector_on):
    vector, inputs = vector_on(), {"input_ids": IDS}
    _, ours = hidden_at(llama, [], inputs, intervene(llama, Add(vector, 0.6)))
    _, theirs = hidden_at(llama, [], inputs, steer(llama, vector, 0.6))
    assert torch.equal(ours, theirs)
    _, plain = hidden_at(llama, [], inputs)
    _, twice = hidden_at(llama, [], inputs, intervene(llama, [Flip(vector), Flip(vector)]))
    assert twice == pytest.approx(plain, abs=1e-4)
    # The bridge is edited as well.
    with torch.inference_mode(), intervene(llama, Set(vector, 30.0)):
        bridged = llama(IDS)
    _, plain = hidden_at(llama, [], inputs, intervene(llama, Set(vector, 30.0)))
    assert bridged == pytest.approx(plain, abs=1e-3)


def test_padding_and_special_tokens_keep_their_very_bits(llama, vector_on):
    model, vector = llama, vector_on()
    ids, special = IDS.clone(), model.tokenizer.eos_token_id
    ids[0, 0] = ids[1, 3] = special
    attention = torch.ones_like(ids)
    attention[1, :3] = 0
    inputs = {"input_ids": ids, "attention_mask": attention}
    inputs["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
    [before], _ = hidden_at(model, [vector.site], inputs)
    [after], _ = hidden_at(model, [vector.site], inputs, intervene(model, Set(vector, 50.0)))
    written = (before != after).any(dim=-1)
    assert torch.equal(written, (attention == 1) & (ids != special))


def test_once_leaves_every_layer_as_one_edit_of_the_clean_model_would(llama, vector_on):
    model, inputs = llama, {"input_ids": IDS}
    for make in (Flip, KINDS["flip"], lambda v: Add(v, 0.5)):
        edits = [make(vector_on(layer=layer)) for layer in range(3)]
        sites = [edit.vector.site for edit in edits]
        clean, _ = hidden_at(model, sites, inputs)
        after, _ = hidden_at(model, sites, inputs, intervene(model, edits))
        for edit, before, then in zip(edits, clean, after, strict=True):
            wanted = edit.target(split_along(before, edit.vector)[0])
            close = pytest.approx(wanted, abs=1e-5 * float(then.abs().max()))
            assert split_along(then, edit.vector)[0] == close


def test_compounding_flips_what_earlier_layers_flipped(llama, vector_on):
    model, inputs = llama, {"input_ids": IDS}
    edits = [Flip(vector_on(layer=layer), 3.0) for layer in (0, 1)]
    sites = [edit.vector.site for edit in edits]
    clean, _ = hidden_at(model, sites, inputs)
    first, _ = hidden_at(model, sites, inputs, intervene(model, edits[0]))
    both, _ = hidden_at(model, sites, inputs, intervene(model, edits, policy="compound"))
    found, _ = split_along(both[1], edits[1].vector)
    assert found == pytest.approx(-3.0 * split_along(first[1], edits[1].vector)[0], abs=1e-3)
    assert (found + 3.0 * split_along(clean[1], edits[1].vector)[0]).abs().max() > 1.0


def texts_under(model, edits, prompts, **how):
    with intervene(model, edits, **how):
        made = generate(model, prompts, max_new_tokens=8, chat=False, max_batch_rows=3)
    return [record.text for record in made.records]


@pytest.mark.parametrize("policy", ["once", "compound"])
def test_each_row_of_a_padded_batch_is_as_if_alone(llama, vector_on, policy):
    edits = [Flip(vector_on(layer=n), 2.0) for n in (0, 2)]
    edits += [Set(vector_on(), -30.0, last=2), Set(vector_on(), 30.0, first=3)]
    together = texts_under(llama, edits, PROMPTS, policy=policy)
    # Batch after batch, each a new prompt.
    assert together == [texts_under(llama, edits, [p], policy=policy)[0] for p in PROMPTS]


def test_windows_begin_and_end_where_they_say(llama, vector_on):
    model, vector, seen = llama, vector_on(), []
    edits = [Set(vector, 5.0, first=0, last=1), Set(vector, -5.0, first=3, last=4)]
    module = resolve_target(model, vector.site).module
    with intervene(model, edits, positions="from_last_prompt_token"):
        handle = module.register_forward_hook(
            lambda _m, _i, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())
        )
        ids = torch.randint(8, 300, (1, 4), generator=torch.Generator().manual_seed(3))
        plain: Any = plain_model(model)
        plain.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
        handle.remove()
    v = vector.direction / vector.direction.norm()
    # One pass per token: the last position of each decides that token.
    alphas = [float(hidden[0, -1] @ v) for hidden in seen]
    assert alphas[:2] == pytest.approx([5.0, 5.0], abs=1e-3)
    assert alphas[3:5] == pytest.approx([-5.0, -5.0], abs=1e-3)
    # What no window covers, and prompt tokens before the last, are left alone.
    for free in (alphas[2], alphas[5], float(seen[0][0, 0] @ v)):
        assert min(abs(free - 5.0), abs(free + 5.0)) > 1e-2


CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {"use_cache": True},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "look-up": {"prompt_lookup_num_tokens": 3},
    "chunks": {"prefill_chunk_size": 3},
}


@pytest.mark.parametrize("policy", ["once", "compound"])
@pytest.mark.parametrize(
    ("name", "cache"),
    [("mamba", "dynamic"), ("gemma3", "dynamic"), ("gpt2", "static")]
    + [("llama", c) for c in (*CACHES, "beams")],
)
def test_edits_are_the_same_with_any_cache(
    tiny_model, tiny_tokenizer, vector_on, name, cache, policy
):
    model = hybrid("mamba", tiny_tokenizer) if name == "mamba" else tiny_model(name)
    plain: Any = plain_model(model)
    ids = torch.tensor([[40, 51, 62, 73, 51, 62, 44, 51]])
    vectors = [vector_on(layer=layer, model_fingerprint=None) for layer in (0, 2)]
    common: dict[str, Any] = {
        "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0,
        "output_scores": True, "return_dict_in_generate": True,
    }  # fmt: skip
    common |= {"num_beams": 3} if cache == "beams" else {}
    # Windows count tokens, so they are as good a test as whole edits.
    windows = [Set(vectors[0], -20.0, last=3), Set(vectors[1], 20.0, first=4)]
    for edits in (windows, *([make(vector) for vector in vectors] for make in KINDS.values())):
        for positions in ("all", "generated"):

            def generated(**settings: Any) -> Any:
                mask = torch.ones_like(ids)
                with intervene(model, edits, policy=policy, positions=positions):  # noqa: B023
                    return plain.generate(ids, attention_mask=mask, **common, **settings)

            expected = generated(use_cache=False)
            if cache == "beams":
                if policy == "once":
                    with pytest.raises(SteeringError, match="use_cache=False"):
                        generated()
                continue
            got = generated(**CACHES[cache])
            assert torch.equal(got.sequences, expected.sequences)
            for one, other in zip(got.scores, expected.scores, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: Flip(v, -1.0), "flip has scale -1"),
        (lambda v: Set(v, 1.0, first=5, last=2), "end before they begin"),
        (lambda v: Set(v, 1.0, first=-1), "not whole numbers from 0"),
    ],
)
def test_what_cannot_be_done_is_refused(vector_on, make, message):
    with pytest.raises(SteeringError, match=message):
        make(vector_on())


def test_what_does_not_fit_the_model_or_never_happens_is_an_error(llama, vector_on):
    model, vector = llama, vector_on()
    ids = torch.tensor([[40, 51, 62, 73]])
    wide = type(vector).from_raw(torch.ones(40), site=vector.site, model="wide")
    for edits, how, error, message in [
        ([], {}, SteeringError, "there are no interventions"),
        (Flip(vector), {"policy": "twice"}, SteeringError, "policy 'twice' is unknown"),
        (Flip(vector_on("gpt2")), {}, MismatchError, "made on other weights"),
        (Flip(wide), {}, MismatchError, "40 wide and this model's residual stream 32"),
        (Flip(vector), {}, HookError, "never took place"),
    ]:
        with pytest.raises(error, match=message), intervene(model, edits, **how):
            pass
    with (
        pytest.raises(HookError, match="'generated' chose none of the tokens"),
        intervene(model, Flip(vector), positions="generated"),
    ):
        plain_model(model)(ids, use_cache=False)
