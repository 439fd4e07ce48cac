"""The published figures of IOI on GPT-2 small, and the same code on a tiny GPT-2.

The eight logit differences are those of the well-known lesson, on weights that are folded and
centred and with BOS in front; folding moves no logit difference, so both ways are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import load_model
from saesteer.patching.ablation import Ablation, Counterfactuals
from saesteer.patching.answers import task_answers
from saesteer.patching.batch import PairBatch, encode_pairs
from saesteer.patching.circuits import Circuit, Node, faithfulness, published_ioi_circuit
from saesteer.patching.direct import direct_attribution
from saesteer.patching.ioi import eight_ioi_pairs, generate_ioi
from saesteer.patching.metrics import metric_named
from saesteer.patching.pairs import PromptPair
from saesteer.patching.patcher import activation_patching
from saesteer.utils.errors import NetworkError

EIGHT = (3.337, 3.202, 2.709, 3.797, 1.720, 5.281, 2.601, 5.767)
MILK = PromptPair(
    "After John and Mary went to the store, John gave a bottle of milk to",
    "After John and Mary went to the store, Mary gave a bottle of milk to",
    " Mary",
    " John",
)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    """GPT-2 small from the user's cache; skips where it is not there."""
    try:
        return load_model("gpt2", device="cpu", dtype="float32")
    except NetworkError as error:
        pytest.skip(f"GPT-2 small's weights are not here: {error}")


def _folded_logits(model: Any, batch: PairBatch) -> torch.Tensor:
    """The last logits of unpadded clean prompts on folded and centred weights."""
    model.enable_compatibility_mode()
    rows = [ids[real] for ids, real in zip(batch.clean, batch.clean_mask, strict=True)]
    with torch.no_grad():
        return torch.stack([model(row[None])[0, -1] for row in rows])


@pytest.mark.slow
def test_logit_differences_and_probabilities_are_the_published_ones(gpt2):
    batch = encode_pairs(gpt2, eight_ioi_pairs(gpt2))
    found = task_answers(gpt2, batch)
    assert found.clean.logit_difference == pytest.approx(np.array(EIGHT), abs=0.01)
    assert found.accuracy == 1.0
    folded = load_model("gpt2", device="cpu", dtype="float32")
    logits, rows = _folded_logits(folded, batch), torch.arange(len(batch))
    differences = (logits[rows, batch.right] - logits[rows, batch.wrong]).numpy()
    assert differences == pytest.approx(np.array(EIGHT), abs=0.01)
    assert differences.mean() == pytest.approx(3.552, abs=0.01)
    milk = encode_pairs(gpt2, [MILK])
    clean = task_answers(gpt2, milk).clean
    assert clean.right_rank[0] == 0
    assert clean.right_probability[0] == pytest.approx(0.7007, abs=0.002)
    assert float(_folded_logits(folded, milk)[0, milk.right[0]]) == pytest.approx(18.09, abs=0.02)


@pytest.mark.slow
def test_name_movers_and_negative_name_movers_stand_out(gpt2):
    batch = encode_pairs(gpt2, eight_ioi_pairs(gpt2))
    heads = direct_attribution(gpt2, batch).heads.mean(axis=0)
    strongest = np.argsort(-np.abs(heads), axis=None)[:8]
    named = {divmod(int(flat), 12) for flat in strongest}
    assert {(9, 9), (10, 0), (10, 7), (11, 10)} <= named
    assert heads[9, 9] > 0.5 and heads[10, 0] > 0.3
    assert heads[10, 7] < -0.5 and heads[11, 10] < -0.3


@pytest.mark.slow
def test_s_inhibition_heads_are_among_the_head_patches(gpt2):
    batch = encode_pairs(gpt2, eight_ioi_pairs(gpt2))
    found = activation_patching(gpt2, batch, "z", metric_named("logit_difference")).mean()
    strongest = np.argsort(-np.abs(found), axis=None)[:12]
    assert {(8, 6), (8, 10), (7, 9)} <= {divmod(int(flat), 12) for flat in strongest}


@pytest.mark.slow
def test_the_published_circuit_does_the_task_and_random_heads_do_not(gpt2):
    made, reference = generate_ioi(gpt2, 24, seed=0), generate_ioi(gpt2, 96, seed=1)
    batch = encode_pairs(gpt2, made.pairs)
    ablation = Ablation(gpt2, batch, Counterfactuals.of_ioi(gpt2, reference), made.frames)
    circuit = published_ioi_circuit()
    rng = np.random.default_rng(0)
    drawn = [Node(*map(int, rng.integers(12, size=2)), role=node.role) for node in circuit.nodes]
    found, random = (faithfulness(ablation, one) for one in (circuit, Circuit.of(drawn)))
    assert found["recovered"] > random["recovered"] + 0.3
    assert found["share"] > 0.5
