"""The logit lens, against Hugging Face's own hidden states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from saesteer.models import plain_model, wrap_model
from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.patching.reading.lens import logit_lens
from saesteer.utils.errors import ConfigError, SiteError

PAIRS = [
    PromptPair("The cat sat on the mat", "The dog ran home", "e", "a", "first"),
    PromptPair("I like people, and I listen to them", "What do you say", " people", " weather"),
]
MIDDLE = {
    "gpt2": "transformer.h.{}.ln_2",
    "llama": "model.layers.{}.post_attention_layernorm",
    "qwen3": "model.layers.{}.post_attention_layernorm",
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
    assert "" not in frame["token"].tolist() and not frame.isna().to_numpy().any()


def test_the_last_position_alone_is_the_last_column_of_all(tiny_model, arch):
    batch = encode_pairs(tiny_model(arch), PAIRS)
    last = logit_lens(tiny_model(arch), batch)
    every = logit_lens(tiny_model(arch), batch, every_position=True, max_tokens=1)
    assert last.columns == (batch.width - 1,)
    assert last.logit_difference[..., 0] == pytest.approx(every.logit_difference[..., -1], abs=1e-4)
    assert [row[0] for row in last.tokens] == [row[-1] for row in every.tokens]


def test_a_soft_cap_on_the_logits_is_applied(hf_model, tiny_tokenizer):
    from saesteer.patching.reading.residual_reads import find_unembedding

    model = hf_model("gemma3")
    model.config.final_logit_softcapping = 0.5
    bridge = wrap_model(model, tiny_tokenizer())
    found = logit_lens(bridge, encode_pairs(bridge, PAIRS))
    assert find_unembedding(bridge).cap == 0.5
    assert np.abs(found.logit_difference).max() <= 1.0


def test_a_model_that_does_more_behind_its_last_block_is_refused(make_model_folder):
    from saesteer.models import load_model

    bridge = load_model(make_model_folder("llama", seed=3), device="cpu", dtype="float32")
    plain: Any = plain_model(bridge)
    # The unembedding's own forward is hooked, and so not what a matrix of its weights would give.
    bare = nn.Linear(32, plain.lm_head.weight.shape[0], bias=False)
    bare.weight = plain.lm_head.weight
    plain.get_output_embeddings = lambda: bare
    hook = plain.lm_head.register_forward_hook(lambda *args: args[2] * 1.5 + 1)
    with pytest.raises(SiteError, match="more than a norm and an unembedding"):
        logit_lens(bridge, encode_pairs(bridge, PAIRS))
    hook.remove()


@pytest.mark.parametrize("top_k", [0, 401])
def test_a_number_of_tokens_that_cannot_be_is_refused(tiny_llama, top_k):
    with pytest.raises(ConfigError, match=f"top_k is {top_k}"):
        logit_lens(tiny_llama, encode_pairs(tiny_llama, PAIRS), top_k=top_k)
