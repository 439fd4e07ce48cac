"""What a model answers, against Hugging Face one prompt at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.patching.reading.answers import answer_logits, prompt_answers, task_answers
from saesteer.utils.errors import ConfigError

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


def test_padded_batches_give_the_logits_of_single_prompts(batch, reference, tiny_model, arch):
    found = answer_logits(tiny_model(arch), batch.clean, batch.clean_mask)
    torch.testing.assert_close(found, reference[0], atol=1e-4, rtol=0)


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
            texts = [tiny_model(arch).tokenizer.decode([int(token)]) for token in order[:3]]
            assert [token for token, _ in side.top[i]] == texts


def test_the_summary_counts_both_sides(batch, tiny_model, arch):
    found = task_answers(tiny_model(arch), batch)
    summary = found.summary()
    clean, corrupted = found.clean.logit_difference, found.corrupted.logit_difference
    assert summary["accuracy"] == pytest.approx(np.mean([*(clean > 0), *(corrupted > 0)]))
    assert summary["logit_difference_clean"] == pytest.approx(clean.mean())
    assert summary["logit_difference_corrupted"] == pytest.approx(-corrupted.mean())
    assert found.solved.tolist() == ((clean > 0) & (corrupted > 0)).tolist()


def test_the_table_has_a_row_for_each_prompt(batch, tiny_model, arch):
    frame = task_answers(tiny_model(arch), batch, top_k=2).frame()
    assert frame["side"].tolist() == ["clean", "corrupted"] * 3
    assert frame["pair"].tolist()[:4] == ["first", "first", "pair 2", "pair 2"]
    assert frame["answer"].tolist()[2:4] == [" people", " weather"]
    assert (frame["top1_probability"] >= frame["top2_probability"]).to_numpy().all()
    assert not frame.isna().to_numpy().any()


@pytest.mark.parametrize("top_k", [0, 401])
def test_a_number_of_tokens_that_cannot_be_is_refused(tiny_llama, top_k):
    logits = torch.zeros(1, 400)
    with pytest.raises(ConfigError, match=f"top_k is {top_k}"):
        index = torch.tensor([0])
        prompt_answers(tiny_llama.tokenizer, logits, index, index + 1, top_k=top_k)
