"""Circuits: mean ablation against plain loops, the three criteria and the search by hand."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch

from saesteer.patching.ablation import Ablation, Counterfactuals
from saesteer.patching.batch import encode_pairs
from saesteer.patching.circuits import (
    Circuit,
    Node,
    completeness,
    faithfulness,
    find_circuit,
    minimality,
    published_ioi_circuit,
)
from saesteer.patching.pairs import PromptPair
from saesteer.utils.errors import ConfigError, DataError
from tests.by_hand import changed
from tests.patching.conftest import UNLIKE

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

    def make(pairs=PAIRS, texts=OTHER):
        others = Counterfactuals.of_texts(model, texts)
        return Ablation(model, encode_pairs(model, pairs), others)

    return make


def _loop(model, arch, ids, texts, kept):
    """The logits of one unpadded prompt with all heads but `kept` [layer, pos, head] at means."""
    modules = [
        model.get_submodule(OUTPUT.get(arch, "model.layers.{}.self_attn.o_proj").format(layer))
        for layer in range(3)
    ]
    seen: list[list[torch.Tensor]] = [[], [], []]
    with torch.no_grad(), ExitStack() as stack:
        for module, own in zip(modules, seen, strict=True):
            stack.enter_context(changed(module, lambda z, own=own: own.append(z) or z, "input"))
        for text in texts:
            model(text[None])
    with torch.no_grad(), ExitStack() as stack:
        for module, own, mask in zip(modules, seen, kept, strict=True):
            mean, wide = torch.stack(own).mean(dim=0), mask.repeat_interleave(8, dim=-1)
            there = partial(torch.where, wide, other=mean)
            stack.enter_context(changed(module, there, "input"))
        return model(ids[None]).logits[0, -1]


@UNLIKE
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
    # With the prompt itself as the only counterfactual the mean is what stands there anyway.
    ablation = ablate([PAIRS[0]], [PAIRS[0].clean])
    assert ablation.keeping(()) == pytest.approx(ablation.without(()), abs=1e-4)


def test_padding_beside_a_longer_prompt_changes_nothing(tiny_model, arch):
    model = tiny_model(arch)
    found = []
    for pairs, groups in (([PAIRS[0]], (0,)), ([PAIRS[0], LONG], (0, 1))):
        batch = encode_pairs(model, pairs)
        texts = [*OTHER, LONG.corrupted]
        others = Counterfactuals.of_texts(model, texts, groups=(0, 0, 0, 1))
        ablation = Ablation(model, batch, others, groups)
        found.append(ablation.keeping([Node(0, 0), Node(1, 3)])[0])
    assert found[1] == pytest.approx(found[0], abs=1e-4)


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


def test_the_published_circuit_has_its_26_heads_where_they_act():
    circuit = published_ioi_circuit()
    assert [len(nodes) for nodes in circuit.classes.values()] == [3, 8, 2, 4, 4, 3, 2]
    assert len(circuit) == 26
    assert {node.role for node in circuit.nodes} == {"end", "S2", "S1+1"}
    assert {Node(9, 9, "end"), Node(10, 0, "end"), Node(2, 2, "S1+1")} <= set(circuit.nodes)
    assert Node.parse("5.5@S2") in circuit.classes["induction"]


BIG, SMALL, AGAINST, BACKUP = Node(0, 1), Node(2, 3), Node(1, 0), Node(2, 0)


class MadeUp(Ablation):
    """What every head is worth is known: 6, 3, -2, and a backup that acts without the first."""

    def measure(self, kept):
        there = {
            node: bool(kept[node.layer, :, :, node.head].all())
            for node in (BIG, SMALL, AGAINST, BACKUP)
        }
        value = 1.0 + 6 * there[BIG] + 3 * there[SMALL] - 2 * there[AGAINST]
        value += 4 * (there[BACKUP] and not there[BIG])
        return np.array([value, value])

    def gradient_scores(self, roles=None):
        # Idle heads are ranked in between, so the ranking alone is not enough.
        scores = {BIG: 6, Node(1, 2): 5, SMALL: 3, Node(0, 0): 2.5, AGAINST: -2, BACKUP: 0}
        return list(scores), np.array(list(scores.values()))


@pytest.fixture
def made_up(tiny_llama):
    batch = encode_pairs(tiny_llama, PAIRS)
    return MadeUp(tiny_llama, batch, Counterfactuals.of_corrupted(batch))


def test_the_three_criteria_see_the_backup_that_a_circuit_lacks(made_up):
    assert faithfulness(made_up, Circuit.of([BIG])) == pytest.approx(
        {"whole": 8, "circuit": 7, "nothing": 1, "gap": 1, "share": 7 / 8, "recovered": 6 / 7}
    )
    circuit = Circuit({"movers": (BIG, SMALL), "against": (AGAINST,)})
    found = {record["name"]: record for record in completeness(made_up, circuit, random_sets=3)}
    assert list(found) == ["nothing", "movers", "against", "random 1", "random 2", "random 3"]
    assert found["nothing"]["gap"] == pytest.approx(0.0)
    # Without the movers the whole model still has its backup: 1 - 2 + 4 against 1 - 2.
    assert (found["movers"]["circuit"], found["movers"]["whole"]) == (-1.0, 3.0)
    assert found["movers"]["gap"] == pytest.approx(4.0)
    complete = Circuit.of([BIG, SMALL, AGAINST, BACKUP])
    assert all(record["gap"] == 0 for record in completeness(made_up, complete))
    # A head that only counts without another counts as minimal.
    circuit = Circuit({"movers": (BIG, BACKUP), "rest": (SMALL, AGAINST)})
    changes = {record["head"]: record["change"] for record in minimality(made_up, circuit)}
    assert changes == pytest.approx({"0.1": 6.0, "2.0": 4.0, "2.3": 3.0, "1.0": 2.0})
    idle = minimality(made_up, Circuit.of([BIG, Node(1, 1)]))
    assert (idle[-1]["head"], idle[-1]["change"]) == ("1.1", 0.0)


def test_the_search_finds_the_fewest_heads_that_are_faithful(made_up):
    assert find_circuit(made_up, 0.95).nodes == (BIG, SMALL, AGAINST)
    # 7 of 7 within a third: the largest head alone is near enough.
    assert find_circuit(made_up, 0.7).nodes == (BIG,)


def test_a_real_search_is_as_faithful_as_asked(tiny_model, arch):
    model = tiny_model(arch)
    batch = encode_pairs(model, PAIRS)
    ablation = Ablation(model, batch, Counterfactuals.of_corrupted(batch))
    found = find_circuit(ablation, 0.8)
    assert abs(1 - faithfulness(ablation, found)["recovered"]) <= 0.2
    # The smallest by one: no head of it can go.
    for node in found.nodes if len(found) > 1 else ():
        fewer = Circuit.of(found.without([node]))
        assert abs(1 - faithfulness(ablation, fewer)["recovered"]) > 0.2
    by_place = find_circuit(ablation, 0.5, roles=["end"])
    assert {node.role for node in by_place.nodes} == {"end"}


def test_a_task_that_no_head_does_and_a_group_without_counterfactuals_are_refused(tiny_llama):
    class Idle(MadeUp):
        def measure(self, kept: torch.Tensor):
            return np.ones(2)

    batch = encode_pairs(tiny_llama, PAIRS)
    with pytest.raises(ConfigError, match="with all heads and with none"):
        find_circuit(Idle(tiny_llama, batch, Counterfactuals.of_corrupted(batch)), 0.8)
    with pytest.raises(DataError, match="group 1 of the pairs has no counterfactual"):
        Ablation(tiny_llama, batch, Counterfactuals.of_texts(tiny_llama, OTHER), [0, 1])
