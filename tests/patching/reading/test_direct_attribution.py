"""Direct logit attribution: shares that add up, against transformer_lens and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from saesteer.models import load_model, wrap_model
from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.patching.reading.direct_attribution import direct_attribution
from saesteer.patching.reading.residual_reads import linear_norm
from saesteer.utils.errors import SiteError

PAIRS = [
    PromptPair("The cat sat on the mat", "The dog ran home", "e", "a", "first"),
    PromptPair("I like people, and I listen to them", "What do you say", " people", " weather"),
]


@pytest.fixture
def uneven(hf_model, tiny_tokenizer, arch):
    """The tiny model with norms and biases that do something."""
    model = hf_model(arch)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for name, weight in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.3)
    return wrap_model(model, tiny_tokenizer())


@pytest.mark.parametrize("side", ["clean", "corrupted"])
@pytest.mark.parametrize("max_tokens", [1, 4096])
def test_components_and_bias_sum_to_the_logit_difference(uneven, side, max_tokens):
    found = direct_attribution(
        uneven, encode_pairs(uneven, PAIRS), side=side, max_tokens=max_tokens
    )
    summed = found.embed + found.attn.sum(axis=1) + found.mlp.sum(axis=1) + found.bias
    assert summed == pytest.approx(found.total, abs=1e-4)
    by_head = found.heads.sum(axis=2) + found.attn_bias
    assert by_head == pytest.approx(found.attn, abs=1e-4)


def test_only_biases_stand_beside_the_heads(uneven, arch):
    found = direct_attribution(uneven, encode_pairs(uneven, PAIRS))
    assert (np.abs(found.attn_bias).max() > 1e-3) == (arch == "gpt2")
    assert (np.abs(found.bias).max() > 1e-3) == (arch == "gpt2")


def test_the_total_is_the_models_own_logit_difference(uneven, arch):
    batch = encode_pairs(uneven, PAIRS)
    found = direct_attribution(uneven, batch)
    for i in range(len(batch)):
        ids = batch.clean[i][batch.clean_mask[i]]
        with torch.no_grad():
            logits = uneven(ids[None])[0, -1]
        gap = float(logits[batch.right[i]] - logits[batch.wrong[i]])
        assert found.total[i] == pytest.approx(gap, abs=1e-4)


def test_a_heads_share_is_what_the_frozen_norms_make_of_its_own_output(uneven, arch):
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


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_shares_equal_transformer_lens_where_it_reads_them(tiny_model, arch):
    # Its logit_attrs leaves the norm's weight out, which is 1 in a model that was never trained.
    model = tiny_model(arch)
    batch = encode_pairs(model, [PAIRS[0]])
    found = direct_attribution(model, batch)
    _, cache = model.run_with_cache(batch.clean)
    parts, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    shares = cache.logit_attrs(
        parts, tokens=batch.right, incorrect_tokens=batch.wrong, pos_slice=-1
    )[:, 0]
    named = dict(zip(labels, shares.tolist(), strict=True))
    embed = named["embed"] + named.get("pos_embed", 0.0)
    assert found.embed[0] == pytest.approx(embed, abs=1e-4)
    for layer in range(3):
        assert found.attn[0, layer] == pytest.approx(named[f"{layer}_attn_out"], abs=1e-4)
        assert found.mlp[0, layer] == pytest.approx(named[f"{layer}_mlp_out"], abs=1e-4)


def test_the_table_holds_every_share_once(tiny_llama):
    found = direct_attribution(tiny_llama, encode_pairs(tiny_llama, PAIRS))
    frame = found.frame()
    assert len(frame) == 2 * (1 + 3 * (4 + 3) + 2)
    first = {
        (row["component"], row["layer"], row["head"]): row["share"]
        for row in frame.to_dict("records")
        if row["pair"] == "first"
    }
    assert first["head", 1, 2] == pytest.approx(found.heads[0, 1, 2])
    names = ("embed", "attn_out", "mlp_out", "bias")
    parts = sum(share for key, share in first.items() if key[0] in names)
    assert parts == pytest.approx(first["total", -1, -1], abs=1e-4)


def test_the_strongest_heads_come_first_with_their_sign(tiny_llama):
    found = direct_attribution(tiny_llama, encode_pairs(tiny_llama, PAIRS))
    strongest = found.strongest_heads(12)
    sizes = [abs(share) for *_, share in strongest]
    assert sizes == sorted(sizes, reverse=True)
    layer, head, share = strongest[0]
    assert share == pytest.approx(found.heads.mean(axis=0)[layer, head])


@pytest.mark.parametrize("make", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_with_its_scale_fixed_gives_back_its_own_output(make):
    torch.manual_seed(0)
    norm = make(16)
    with torch.no_grad():
        for weight in norm.parameters():
            weight.add_(torch.randn_like(weight))
    rows = torch.randn(5, 16) * 3 + 1
    fixed = linear_norm(norm, rows)
    bias = 0 if fixed.bias is None else fixed.bias
    torch.testing.assert_close(fixed.share(rows) + bias, norm(rows), atol=1e-5, rtol=1e-5)
    parts = torch.randn(5, 16)
    whole = fixed.share(parts) + fixed.share(rows - parts)
    torch.testing.assert_close(whole + bias, norm(rows), atol=1e-4, rtol=1e-4)


def test_another_kind_of_norm_is_refused():
    norm = nn.GroupNorm(4, 16)
    with torch.no_grad():
        norm.weight.add_(1.0)
    with pytest.raises(SiteError, match="GroupNorm is neither"):
        linear_norm(norm, torch.randn(5, 16))


@pytest.mark.real
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shares_sum_to_the_logit_difference_on_the_real_model(bundled_gguf, dtype):
    from saesteer.patching.prompts.ioi import eight_ioi_pairs

    model = load_model("smollm2", device="cpu", dtype=dtype)
    found = direct_attribution(model, encode_pairs(model, eight_ioi_pairs(model)[:4]))
    summed = found.embed + found.attn.sum(axis=1) + found.mlp.sum(axis=1) + found.bias
    assert summed == pytest.approx(found.total, abs=1e-4 if dtype == "float32" else 0.2)
    assert found.strongest_heads(1)[0][:2] == (23, 3)
