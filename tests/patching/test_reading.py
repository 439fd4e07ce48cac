"""Reading without patching, against Hugging Face one prompt at a time and transformer_lens."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from saesteer.models import wrap_model
from saesteer.patching import eight_ioi_pairs, lens
from saesteer.patching.answers import task_answers
from saesteer.patching.attention import attention_page, attention_views
from saesteer.patching.batch import encode_pairs
from saesteer.patching.direct import direct_attribution
from saesteer.patching.lens import logit_lens
from saesteer.patching.pairs import PromptPair
from saesteer.utils.errors import SiteError
from tests.hybrids import random_model
from tests.patching.conftest import UNLIKE

PAIRS = [
    PromptPair("The cat sat on the mat", "The dog ran home", "e", "a", "first"),
    PromptPair("I like people, and I listen to them", "What do you say", " people", " weather"),
    PromptPair("You are helpful", "The weather is sunny and warm today", " I", " the", "third"),
]


@pytest.fixture
def batch(tiny_model, arch):
    return encode_pairs(tiny_model(arch), PAIRS)


@pytest.fixture
def reference(batch, hf_model, arch):
    """Logits behind every prompt, unpadded and alone."""

    def last(ids, mask):
        model = hf_model(arch)
        with torch.no_grad():
            return torch.stack(
                [model(row[real][None]).logits[0, -1] for row, real in zip(ids, mask, strict=True)]
            )

    return last(batch.clean, batch.clean_mask), last(batch.corrupted, batch.corrupted_mask)


@pytest.mark.parametrize("max_tokens", [1, 4096])
def test_ranks_probabilities_and_differences_are_those_of_single_prompts(
    batch, reference, tiny_model, arch, max_tokens
):
    found = task_answers(tiny_model(arch), batch, top_k=3, max_tokens=max_tokens)
    for side, logits, right, wrong in (
        (found.clean, reference[0], batch.right, batch.wrong),
        (found.corrupted, reference[1], batch.wrong, batch.right),
    ):
        for i, row in enumerate(logits):
            order = row.argsort(descending=True)
            assert side.right_rank[i] == order.tolist().index(int(right[i]))
            assert side.right_probability[i] == pytest.approx(float(row.softmax(0)[right[i]]), 1e-3)
            gap = float(row[right[i]] - row[wrong[i]])
            assert side.logit_difference[i] == pytest.approx(gap, abs=1e-4)
            assert [int(token) for token in side.top[i]] == [int(token) for token in order[:3]]

    frame = found.frame()
    assert frame["side"].tolist() == ["clean", "corrupted"] * 3
    assert frame["pair"].tolist()[:4] == ["first", "first", "pair 2", "pair 2"]
    assert frame["answer"].tolist()[2:4] == [" people", " weather"]
    assert (frame["top1_probability"] >= frame["top2_probability"]).to_numpy().all()
    assert not frame.isna().to_numpy().any()


MIDDLE = {
    "gpt2": "transformer.h.{}.ln_2",
    "gemma3": "model.layers.{}.pre_feedforward_layernorm",
}
FINAL = {"gpt2": "transformer.ln_f"}


@pytest.fixture
def uneven(hf_model, tiny_tokenizer, arch):
    """The tiny model with norms that do something, and the plain model it was made from."""
    made = []
    for _ in range(2):
        model = hf_model(arch)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(7)
            for name, weight in model.named_parameters():
                if "norm" in name or "ln_" in name or name.endswith("bias"):
                    weight.add_(torch.randn_like(weight) * 0.3)
        made.append(model)
    return wrap_model(made[0], tiny_tokenizer()), made[1]


def _streams(model, ids, arch):
    """The residual stream of one unpadded prompt at every point, by plain hooks."""
    mids = {}
    hooks = []
    for layer in range(3):
        module = model.get_submodule(MIDDLE[arch].format(layer))

        def keep(_, args, layer=layer):
            mids[layer] = args[0]

        hooks.append(module.register_forward_pre_hook(keep))
    final = model.get_submodule(FINAL.get(arch, "model.norm"))
    kept = []
    hooks.append(final.register_forward_pre_hook(lambda _, args: kept.append(args[0])))
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    points = [states[0]]
    for layer in range(3):
        points += [mids[layer], states[layer + 1] if layer < 2 else kept[0]]
    with torch.no_grad():
        return torch.stack([model.lm_head(final(point))[0] for point in points])


@UNLIKE
@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_every_point_equals_norm_and_unembedding_of_the_hidden_state(uneven, arch, side):
    bridge, plain = uneven
    batch = encode_pairs(bridge, PAIRS)
    found = logit_lens(bridge, batch, side=side, every_position=True, top_k=2)
    assert found.labels[:3] == ("0 resid_pre", "0 resid_mid", "0 resid_post")
    ids, mask = (getattr(batch, side), getattr(batch, f"{side}_mask"))
    for i in range(len(batch)):
        start = batch.width - int(mask[i].sum())
        logits = _streams(plain, ids[i][mask[i]], arch)
        right = logits[..., batch.right[i]]
        gap = (right - logits[..., batch.wrong[i]]).numpy()
        assert found.logit_difference[i][:, start:] == pytest.approx(gap, abs=1e-4)
        chance = logits.softmax(-1)[..., batch.right[i]].numpy()
        assert found.right_probability[i][:, start:] == pytest.approx(chance, abs=1e-4)
        rank = (logits > right[..., None]).sum(-1).numpy()
        assert np.abs(found.right_rank[i][:, start:] - rank).max() <= 1
        best = bridge.tokenizer.decode([int(logits[-1, -1].argmax())])
        assert found.top[i][-1][-1][0] == best


def test_padding_is_in_no_result(tiny_llama):
    batch = encode_pairs(tiny_llama, PAIRS)
    found = logit_lens(tiny_llama, batch, every_position=True)
    pads = ~batch.clean_mask.numpy()
    assert pads.any()
    for values in (found.logit_difference, found.right_probability):
        assert (np.isnan(values) == pads[:, None, :]).all()
    assert ((found.right_rank == -1) == pads[:, None, :]).all()
    frame = found.frame()
    assert len(frame) == 7 * int(batch.clean_mask.sum())
    assert not frame.isna().to_numpy().any()


def test_what_a_model_does_to_its_logits_is_done_by_the_lens_and_refused_by_shares(
    tiny_tokenizer, hf_model
):
    scaled = random_model(
        "granite", logits_scaling=4.0, residual_multiplier=1.0, embedding_multiplier=1.0
    )
    model = wrap_model(scaled, tiny_tokenizer())
    batch = encode_pairs(model, PAIRS)
    found = logit_lens(model, batch)
    own = task_answers(model, batch).clean.logit_difference
    np.testing.assert_allclose(found.logit_difference[:, -1, 0], own, atol=1e-5)
    with pytest.raises(SiteError, match="more than a norm and an unembedding"):
        direct_attribution(model, batch)
    capped = hf_model("gemma3")
    capped.config.final_logit_softcapping = 0.5
    found = logit_lens(wrap_model(capped, tiny_tokenizer()), batch)
    assert np.abs(found.logit_difference).max() <= 1.0


def test_a_prompt_is_read_in_one_call_and_shows_as_a_table(tiny_llama):
    found = lens(tiny_llama, "The cat sat on the mat")
    assert found.table.shape == (7, len(found.tokens))
    assert found.rank[-1] == 0 and found.top[-1][-1][0] == found.answer
    assert "<table" in found._repr_html_()
    [again] = lens(tiny_llama, ["The cat sat on the mat"])
    assert again.margin == found.margin


@UNLIKE
@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_components_and_bias_sum_to_the_logit_difference(uneven, side):
    model, _ = uneven
    found = direct_attribution(model, encode_pairs(model, PAIRS), side=side, max_tokens=1)
    summed = found.embed + found.attn.sum(axis=1) + found.mlp.sum(axis=1) + found.bias
    assert summed == pytest.approx(found.total, abs=1e-4)
    by_head = found.heads.sum(axis=2) + found.attn_bias
    assert by_head == pytest.approx(found.attn, abs=1e-4)


@UNLIKE
def test_a_heads_share_is_what_the_frozen_norms_make_of_its_own_output(uneven, arch):
    uneven, _ = uneven
    # A plain loop: one head's values through the output matrix, a post-norm's gain over its
    # actual root mean square where there is one, then the final norm's.
    batch = encode_pairs(uneven, PAIRS[:1], prepend_bos=False)
    found = direct_attribution(uneven, batch)
    with torch.no_grad():
        _, cache = uneven.run_with_cache(batch.clean)
    final = cache["blocks.2.hook_resid_post"][0, -1]
    unembed = uneven.original_model.lm_head.weight
    apart = unembed[batch.right[0]] - unembed[batch.wrong[0]]
    for layer in range(3):
        z = cache[f"blocks.{layer}.attn.hook_z"][0, -1].reshape(4, 8)
        matrix = uneven.blocks[layer].attn.W_O
        for head in range(4):
            added = z[head] @ matrix[head]
            if arch == "gemma3":
                whole = cache[f"blocks.{layer}.attn.hook_out"][0, -1]
                post = uneven.blocks[layer].ln1_post.original_component
                added = added * (1 + post.weight) / (whole.square().mean() + post.eps).sqrt()
            share = float(apart @ _final_norm(uneven, arch, final, added))
            assert found.heads[0, layer, head] == pytest.approx(share, abs=1e-4)


def _final_norm(model, arch, whole, part):
    norm = model.ln_final.original_component
    if arch == "gpt2":
        centred = whole - whole.mean()
        return (part - part.mean()) / (centred.square().mean() + norm.eps).sqrt() * norm.weight
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    gain = norm.weight + 1 if arch == "gemma3" else norm.weight
    return part / (whole.square().mean() + eps).sqrt() * gain


@pytest.mark.real
@pytest.mark.slow
def test_shares_sum_to_the_logit_difference_on_the_real_model(smollm2_float32):
    model = smollm2_float32
    found = direct_attribution(model, encode_pairs(model, eight_ioi_pairs(model)[:4]))
    summed = found.embed + found.attn.sum(axis=1) + found.mlp.sum(axis=1) + found.bias
    assert summed == pytest.approx(found.total, abs=1e-4)
    mean = np.abs(found.heads.mean(axis=0))
    assert divmod(int(mean.argmax()), mean.shape[1]) == (23, 3)


HEADS = [(2, 1), (0, 3)]


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_patterns_are_hugging_faces_own(tiny_model, hf_model, arch, side):
    model = tiny_model(arch)
    batch = encode_pairs(model, PAIRS)
    views = attention_views(model, batch, HEADS, side=side, pairs=[1, 0])
    plain = hf_model(arch)
    plain.set_attn_implementation("eager")
    for view, pair in zip(views, (1, 0), strict=True):
        ids = getattr(batch, side)[pair][getattr(batch, f"{side}_mask")[pair]]
        with torch.no_grad():
            asked = plain(ids[None], output_attentions=True).attentions
        assert view.heads == tuple(HEADS)
        assert len(view.tokens) == len(ids) and "" not in view.tokens
        for pattern, (layer, head) in zip(view.patterns, HEADS, strict=True):
            assert pattern == pytest.approx(asked[layer][0, head].numpy(), abs=1e-5)


def test_the_page_asks_nothing_of_the_network_escapes_texts_and_keeps_the_numbers(tiny_llama):
    first, second = attention_views(
        tiny_llama, encode_pairs(tiny_llama, PAIRS), HEADS, pairs=[0, 1]
    )
    bad = ("</script><script>alert(1)</script>", *first.tokens[1:])
    first = first._replace(name="<img src=x onerror=alert(1)>", tokens=bad)
    page = attention_page([first, second], title="<b>mine</b>")
    head = page[: page.index("<script>")]
    assert "default-src 'none'" in head
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page.split("CircuitsVis=")[0])
    assert "unpkg" not in page and "sourceMappingURL" not in page
    assert page.count("</script>") == 2
    assert "<b>mine" not in page and "<img src=x" not in page and "<script>alert" not in page
    calls = page[page.rindex("<script>") :]
    [shown, _] = [json.loads(text) for text in re.findall(r"Heads,(\{.*?\})\);", calls)]
    assert shown["tokens"][0] == bad[0]
    assert shown["attentionHeadNames"] == ["2.1", "0.3"]
    assert np.array(shown["attention"]) == pytest.approx(first.patterns, abs=1e-4)
