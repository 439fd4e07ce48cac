"""Faithfulness, completeness, minimality and the search, on a metric made up by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.patching.circuits import (
    Ablation,
    Circuit,
    Node,
    completeness,
    corrupted_counterfactuals,
    faithfulness,
    find_circuit,
    mean_heads,
    minimality,
)
from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.utils.errors import ConfigError

PAIRS = [
    PromptPair("The cat sat on the mat", "The dog sat on the mat", "e", "a"),
    PromptPair("The mat sat on the dog", "The cat sat on the dog", "e", "a"),
]
BIG, SMALL, AGAINST, BACKUP = Node(0, 1), Node(2, 3), Node(1, 0), Node(2, 0)


class MadeUp(Ablation):
    """What every head is worth is known: 6, 3, -2, and a backup that acts without the first."""

    def measure(self, kept):
        self.runs += 1
        there = {
            node: bool(kept[node.layer, :, :, node.head].all())
            for node in (BIG, SMALL, AGAINST, BACKUP)
        }
        value = 1.0 + 6 * there[BIG] + 3 * there[SMALL] - 2 * there[AGAINST]
        value += 4 * (there[BACKUP] and not there[BIG])
        return np.array([value, value])


@pytest.fixture
def made_up(tiny_llama):
    batch = encode_pairs(tiny_llama, PAIRS)
    return MadeUp(
        tiny_llama, batch, mean_heads(tiny_llama, batch, corrupted_counterfactuals(batch))
    )


def test_faithfulness_compares_circuit_whole_and_nothing(made_up):
    found = faithfulness(made_up, Circuit.of([BIG]))
    assert (found.whole[0], found.circuit[0], found.nothing[0]) == (8.0, 7.0, 1.0)
    assert found.gap == pytest.approx(1.0)
    assert found.share == pytest.approx(7 / 8)
    assert found.recovered == pytest.approx(6 / 7)
    assert found.summary()["recovered"] == pytest.approx(6 / 7)


def test_completeness_finds_the_backup_that_the_circuit_lacks(made_up):
    circuit = Circuit({"movers": (BIG, SMALL), "against": (AGAINST,)})
    found = {record.name: record for record in completeness(made_up, circuit, random_sets=3)}
    assert list(found) == ["nothing", "movers", "against", "random 1", "random 2", "random 3"]
    assert found["nothing"].gap == pytest.approx(0.0)
    # Without the movers the whole model still has its backup: 1 - 2 + 4 against 1 - 2.
    assert (found["movers"].circuit, found["movers"].whole) == (-1.0, 3.0)
    assert found["movers"].gap == pytest.approx(4.0)
    complete = Circuit.of([BIG, SMALL, AGAINST, BACKUP])
    assert all(record.gap == 0 for record in completeness(made_up, complete, greedy_steps=2))


def test_the_greedy_set_is_the_one_that_widens_the_gap(made_up):
    circuit = Circuit.of([SMALL, AGAINST, BIG])
    greedy = completeness(made_up, circuit, random_sets=0, greedy_steps=3)[-1]
    assert greedy.name == "greedy"
    assert greedy.removed == (BIG,) and greedy.gap == pytest.approx(4.0)


def test_minimality_sees_a_head_that_only_counts_without_another(made_up):
    circuit = Circuit({"movers": (BIG, BACKUP), "rest": (SMALL, AGAINST)})
    found = {record.node: record for record in minimality(made_up, circuit)}
    assert found[SMALL].change == pytest.approx(3.0)
    assert found[AGAINST].change == pytest.approx(2.0)
    assert found[BACKUP].change == pytest.approx(4.0) and found[BACKUP].beside == (BIG,)
    assert found[BIG].change == pytest.approx(6.0) and found[BIG].beside == (BACKUP,)
    assert found[BIG].share == pytest.approx(6 / 8)
    idle = minimality(made_up, Circuit.of([BIG, Node(1, 1)]))
    assert (idle[-1].node, idle[-1].change) == (Node(1, 1), 0.0)


def test_a_set_to_take_away_before_can_be_given(made_up):
    circuit = Circuit.of([BIG, BACKUP])
    alone = {r.node: r.change for r in minimality(made_up, circuit)}
    given = {r.node: r.change for r in minimality(made_up, circuit, beside={BACKUP: [[BIG]]})}
    assert (alone[BACKUP], given[BACKUP]) == (0.0, 4.0)


def test_the_search_finds_the_fewest_heads_that_are_faithful(made_up):
    scores = np.zeros((3, 4))
    # Idle heads are ranked in between, so the ranking alone is not enough.
    for node, score in ((BIG, 6), (Node(1, 2), 5), (SMALL, 3), (Node(0, 0), 2.5), (AGAINST, -2)):
        scores[node.layer, node.head] = score
    found = find_circuit(made_up, target=0.95, scores=scores)
    assert set(found.circuit.nodes) == {BIG, SMALL, AGAINST}
    assert found.circuit.nodes[0] == BIG and found.scores == (6.0, 3.0, -2.0)
    assert found.candidates == 12 and found.grown == 5 and found.reached
    assert found.searched.recovered == pytest.approx(1.0)
    # 7 of 7 within a third: the largest head alone is near enough.
    rough = find_circuit(made_up, target=0.7, scores=scores, held_out=made_up)
    assert rough.circuit.nodes == (BIG,)
    assert rough.held_out is not None and rough.held_out.recovered == pytest.approx(6 / 7)


def test_heads_that_only_work_together_are_found(made_up, monkeypatch):
    def together(kept):
        pair = all(bool(kept[node.layer, :, :, node.head].all()) for node in (BIG, SMALL))
        return np.full(2, 5.0 * pair)

    monkeypatch.setattr(made_up, "measure", together)
    found = find_circuit(made_up, target=0.9, scores=np.arange(12.0))
    assert set(found.circuit.nodes) == {BIG, SMALL}
    assert found.reached and found.grown > 2


def test_a_real_search_is_as_faithful_as_asked(tiny_model, arch):
    model = tiny_model(arch)
    batch = encode_pairs(model, PAIRS)
    ablation = Ablation(model, batch, mean_heads(model, batch, corrupted_counterfactuals(batch)))
    found = find_circuit(ablation, target=0.8)
    assert abs(1 - found.searched.recovered) <= 0.2
    assert found.reached and 1 <= len(found.circuit) <= found.grown <= 12
    # The smallest by one: no head of it can go.
    for node in found.circuit.nodes:
        fewer = found.circuit.without([node])
        if len(fewer):
            assert abs(1 - faithfulness(ablation, fewer).recovered) > 0.2
    by_place = find_circuit(ablation, target=0.5, roles=["end"])
    assert {node.role for node in by_place.circuit.nodes} == {"end"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"target": 1.0}, "target is 1.0"),
        ({"scores": np.zeros((2, 4))}, "8 scores for 12 heads"),
        ({"scores": np.full((3, 4), np.nan)}, "12 scores are not finite"),
        ({"nodes": [BIG]}, "nodes are given without scores"),
    ],
)
def test_a_search_that_cannot_be_is_refused(made_up, more, sentence):
    with pytest.raises(ConfigError, match=sentence):
        find_circuit(made_up, **more)


def test_a_task_that_no_head_does_is_refused(tiny_llama):
    class Idle(MadeUp):
        def measure(self, kept: torch.Tensor):
            return np.ones(2)

    batch = encode_pairs(tiny_llama, PAIRS)
    means = mean_heads(tiny_llama, batch, corrupted_counterfactuals(batch))
    with pytest.raises(ConfigError, match="with all heads and with none"):
        find_circuit(Idle(tiny_llama, batch, means), scores=np.ones((3, 4)))


def test_an_empty_circuit_is_refused(made_up):
    for measure in (faithfulness, completeness, minimality):
        with pytest.raises(ConfigError, match="holds no head"):
            measure(made_up, Circuit())
