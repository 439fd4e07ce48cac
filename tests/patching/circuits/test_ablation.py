"""Mean ablation, against plain loops over Hugging Face's own modules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.patching.circuits import (
    Ablation,
    Node,
    corrupted_counterfactuals,
    encode_counterfactuals,
    mean_heads,
)
from saesteer.patching.metrics import metric_named
from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.utils.errors import ConfigError, DataError

OUTPUT = {"gpt2": "transformer.h.{}.attn.c_proj"}
PAIRS = [
    PromptPair("The cat sat on the mat", "The dog sat on the mat", "e", "a", roles={"S": 2}),
    PromptPair("The mat sat on the dog", "The cat sat on the dog", "e", "a", roles={"S": 2}),
]
OTHER = ["The dog sat on the cat", "The mat sat on the cat", "The dog sat on the mat"]
LONG = PromptPair("I like people, and I listen to them", "What do you say", " people", " weather")


@pytest.fixture
def ablate(tiny_model, arch):
    model = tiny_model(arch)

    def make(pairs=PAIRS, texts=OTHER, **more):
        batch = encode_pairs(model, pairs)
        means = mean_heads(model, batch, encode_counterfactuals(model, texts))
        return Ablation(model, batch, means, **more)

    return make


def _module(model, arch, layer):
    return model.get_submodule(OUTPUT.get(arch, "model.layers.{}.self_attn.o_proj").format(layer))


def _loop(model, arch, ids, texts, kept):
    """The logits of one unpadded prompt with all heads but `kept` [layer, pos, head] at means."""
    sums = [0.0, 0.0, 0.0]
    hooks = []
    for layer in range(3):

        def add(_, args, layer=layer):
            sums[layer] = sums[layer] + args[0][0] / len(texts)

        hooks.append(_module(model, arch, layer).register_forward_pre_hook(add))
    with torch.no_grad():
        for text in texts:
            model(text[None])
        for hook in hooks:
            hook.remove()
        hooks = []
        for layer in range(3):

            def change(_, args, layer=layer):
                wide = kept[layer].repeat_interleave(8, dim=-1)
                return (torch.where(wide, args[0][0], sums[layer])[None],)

            hooks.append(_module(model, arch, layer).register_forward_pre_hook(change))
        logits = model(ids[None]).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return logits


def test_every_pair_equals_a_plain_loop_over_positions(ablate, hf_model, arch):
    ablation = ablate()
    batch = ablation.batch
    nodes = [Node(1, 2), Node(0, 1, "S"), Node(2, 3, "end"), Node(2, 0)]
    found = ablation.keeping(nodes)
    texts = [encode_pairs(ablation.model, [PromptPair(t, "x y", "e", "a")]).clean[0] for t in OTHER]
    length = batch.width
    assert {len(text) for text in texts} == {length}
    kept = torch.zeros(3, length, 4, dtype=torch.bool)
    kept[1, :, 2] = kept[2, :, 0] = kept[0, 2, 1] = kept[2, -1, 3] = True
    for i in range(2):
        logits = _loop(hf_model(arch), arch, batch.clean[i], texts, kept)
        gap = float(logits[batch.right[i]] - logits[batch.wrong[i]])
        assert found[i] == pytest.approx(gap, abs=1e-4)


def test_ablating_nothing_is_the_model_and_keeping_nothing_the_opposite(ablate, hf_model, arch):
    ablation = ablate()
    whole, nothing = ablation.without(()), ablation.keeping(())
    for i, ids in enumerate(ablation.batch.clean):
        with torch.no_grad():
            logits = hf_model(arch)(ids[None]).logits[0, -1]
        gap = logits[ablation.batch.right[i]] - logits[ablation.batch.wrong[i]]
        assert whole[i] == pytest.approx(float(gap), abs=1e-4)
    every = [Node(layer, head) for layer in range(3) for head in range(4)]
    assert ablation.keeping(every) == pytest.approx(whole, abs=1e-5)
    assert ablation.without(every) == pytest.approx(nothing, abs=1e-5)
    assert np.abs(whole - nothing).max() > 1e-3


def test_a_head_at_its_own_value_changes_nothing(ablate):
    # With the prompt itself as the only counterfactual the mean is what stands there anyway.
    ablation = ablate([PAIRS[0]], [PAIRS[0].clean])
    assert ablation.keeping(()) == pytest.approx(ablation.without(()), abs=1e-4)


def test_padding_beside_a_longer_prompt_changes_nothing(tiny_model, arch):
    model = tiny_model(arch)
    found = []
    for pairs, groups in (([PAIRS[0]], (0,)), ([PAIRS[0], LONG], (0, 1))):
        batch = encode_pairs(model, pairs)
        texts = [*OTHER, LONG.corrupted]
        other = encode_counterfactuals(model, texts, groups=(0, 0, 0, 1))
        means = mean_heads(model, batch, other, groups=groups)
        ablation = Ablation(model, batch, means, max_tokens=4096)
        found.append(ablation.keeping([Node(0, 0), Node(1, 3)])[0])
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_parts_give_the_same_as_one_batch(tiny_llama):
    batch = encode_pairs(tiny_llama, [*PAIRS, LONG])
    other = corrupted_counterfactuals(batch)
    found = []
    for tokens in (1, 4096):
        means = mean_heads(tiny_llama, batch, other, max_tokens=tokens)
        ablation = Ablation(tiny_llama, batch, means, max_tokens=tokens)
        found.append((ablation.keeping([Node(1, 1)]), ablation.gradient_scores()[1]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)


def test_prompts_of_different_lengths_are_averaged_by_role(tiny_llama):
    # One pair whose prompts differ in length: kinds are the first token, "S", the rest and "end".
    pair = replace(LONG, roles={"S": 3})
    batch = encode_pairs(tiny_llama, [pair])
    other = encode_counterfactuals(
        tiny_llama, ["What do you say", "You are"], roles=[{"S": 2}, {"S": 1}]
    )
    found = mean_heads(tiny_llama, batch, other)
    kinds = found.kinds[0].tolist()
    assert kinds[3] not in (kinds[:3] + kinds[4:])
    assert kinds[-1] not in kinds[:-1] and kinds[0] not in kinds[1:]
    assert len({*kinds[1:3], *kinds[4:-1]}) == 1
    _, cache = tiny_llama.run_with_cache(other.ids[:1])
    _, second = tiny_llama.run_with_cache(other.ids[1:][:, other.mask[1]])
    for layer in range(3):
        name = f"blocks.{layer}.attn.hook_z"
        at = (cache[name][0, 2].flatten() + second[name][0, 1].flatten()) / 2
        torch.testing.assert_close(found.means[layer, kinds[3]], at, atol=1e-4, rtol=0)


def test_corrupted_prompts_stand_in_with_their_own_roles(tiny_llama):
    batch = encode_pairs(tiny_llama, [replace(LONG, roles={"end": 8, "start": 0}), PAIRS[0]])
    other = corrupted_counterfactuals(batch)
    assert other.roles[0]["start"] == 0
    assert other.ids.equal(batch.corrupted)


def test_scores_are_the_slope_of_ablating_a_head(ablate):
    # Moving every head a hundredth of its way to the mean changes the metric by the scores' sum.
    ablation = ablate()
    nodes, scores = ablation.gradient_scores()
    assert len(nodes) == len(scores) == 12
    by_place = ablation.gradient_scores(roles=["S", "end"])
    assert [str(node) for node in by_place[0][:3]] == ["0.0@S", "0.0@end", "0.1@S"]
    assert len(by_place[1]) == 24
    exact = float(np.mean(ablation.without(()) - ablation.without([nodes[-1]])))
    # The last layer's last head reaches the logits through one MLP and one norm alone.
    assert scores[-1] == pytest.approx(exact, abs=0.35 * max(abs(exact), 0.2))


def test_other_metrics_are_measured_too(ablate):
    whole = ablate(metric=metric_named("kl"))
    assert whole.without(()) == pytest.approx(0.0, abs=1e-5)
    assert (whole.keeping(()) > 1e-5).all()
    assert (ablate(metric=metric_named("answer_log_probability")).keeping(()) < 0).all()


def test_the_same_question_is_run_once(ablate):
    ablation = ablate()
    first = ablation.keeping([Node(0, 0), Node(1, 1)])
    runs = ablation.runs
    assert ablation.keeping([Node(1, 1), Node(0, 0)]) is first
    assert ablation.runs == runs


def test_what_is_not_there_is_named(ablate, tiny_llama):
    ablation = ablate()
    with pytest.raises(ConfigError, match=r"head 3\.0"):
        ablation.keeping([Node(3, 0)])
    with pytest.raises(DataError, match="pair 1 has no position 'S2'"):
        ablation.keeping([Node(0, 0, "S2")])
    batch = encode_pairs(tiny_llama, PAIRS)
    with pytest.raises(DataError, match="group 1 of the pairs has no counterfactual"):
        mean_heads(tiny_llama, batch, encode_counterfactuals(tiny_llama, OTHER), groups=(0, 1))
    with pytest.raises(DataError, match="1 groups for 2 pairs"):
        mean_heads(tiny_llama, batch, encode_counterfactuals(tiny_llama, OTHER), groups=(0,))
    with pytest.raises(DataError, match="no counterfactual prompt"):
        encode_counterfactuals(tiny_llama, [])
    with pytest.raises(DataError, match="1 groups for 3 counterfactual"):
        encode_counterfactuals(tiny_llama, OTHER, groups=[0])
