"""The letters' vector is that of the package steering-vectors and of a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.data import pairs_from
from saesteer.evaluation.choices import QUESTION, choice_question
from saesteer.methods import CAA, answer_pairs
from saesteer.methods.answer_letters import balanced_orders
from saesteer.models import Site, chat_prompt
from saesteer.utils.errors import DataError

SITE = Site(1)
PAIRS = pairs_from(
    [
        ("i like the dog", "i hate the cat"),
        ("people are good", "people are bad and always will be"),
        ("sun", "rain"),
        ("i listen", "i talk"),
    ]
)


def texts(tokenizer, chat: bool, seed: int) -> tuple[list[str], list[str]]:
    """The matching and the other answer's whole text, written out."""
    made: tuple[list[str], list[str]] = ([], [])
    for pair, first in zip(PAIRS, balanced_orders(len(PAIRS), seed), strict=True):
        options = (pair.positive, pair.negative) if first else (pair.negative, pair.positive)
        asked = f"{QUESTION}\n\nChoices:\n (A) {options[0]}\n (B) {options[1]}"
        prompt = chat_prompt(tokenizer, asked) if chat else f"{asked}\n\nAnswer: "
        made[0].append(f"{prompt}({'A' if first else 'B'}")
        made[1].append(f"{prompt}({'B' if first else 'A'}")
    return made


@pytest.mark.parametrize("chat", [True, False])
def test_it_equals_a_loop_with_hugging_face_alone(tiny_model, hf_model, chat, given_of):
    model = tiny_model("llama")
    reference, tokenizer = hf_model("llama"), model.tokenizer
    answers = answer_pairs(model, PAIRS, [SITE], chat=chat, prepend_bos=False, seed=3)[SITE]
    vector = CAA().fit_in(given_of(answers, answers=answers)).vector_
    means = []
    for side in texts(tokenizer, chat, seed=3):
        hidden = []
        for text in side:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            assert tokenizer.decode(ids[0, -1:]) in ("A", "B")
            with torch.no_grad():
                hidden.append(reference(ids, output_hidden_states=True).hidden_states[2][0, -1])
        means.append(torch.stack(hidden).mean(dim=0))
    torch.testing.assert_close(vector.raw, means[0] - means[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chat", [True, False])
def test_it_equals_the_package_steering_vectors(tiny_model, hf_model, chat, given_of):
    package = pytest.importorskip("steering_vectors")
    model = tiny_model("llama")
    pairs = list(zip(*texts(model.tokenizer, chat, seed=0), strict=True))
    theirs = package.train_steering_vector(
        hf_model("llama"), model.tokenizer, pairs, layers=[SITE.layer], read_token_index=-1
    ).layer_activations[SITE.layer]
    answers = answer_pairs(model, PAIRS, [SITE], chat=chat, prepend_bos=False)[SITE]
    ours = CAA().fit_in(given_of(answers, answers=answers)).vector_
    assert float(torch.cosine_similarity(ours.raw, theirs, dim=0)) > 0.9999
    assert ours.norm == pytest.approx(float(theirs.norm()), rel=1e-4)


def test_either_option_matches_in_half_of_the_questions():
    for n in (2, 7, 100):
        orders = [balanced_orders(n, seed) for seed in range(5)]
        assert {int(order.sum()) for order in orders} == {(n + 1) // 2}
    assert len({tuple(order) for order in orders}) == 5
    np.testing.assert_array_equal(balanced_orders(9, 4), balanced_orders(9, 4))


def test_the_order_of_options_depends_on_the_seed(tiny_model):
    read = [answer_pairs(tiny_model("llama"), PAIRS, [SITE], seed=seed)[SITE] for seed in (0, 0, 1)]
    assert torch.equal(read[0].deltas, read[1].deltas)
    assert not torch.allclose(read[0].deltas, read[2].deltas)


def test_one_token_is_read_for_each_letter_at_every_site(tiny_model):
    sites = [Site(0), Site(2)]
    read = answer_pairs(tiny_model("gpt2"), PAIRS, sites)
    for site in sites:
        assert read[site].site == site
        assert read[site].positive.offsets.tolist() == list(range(len(PAIRS) + 1))


def test_a_pairs_own_prompt_is_the_question(tiny_model):
    def read(prompt: str | None) -> torch.Tensor:
        one = {"positive": "yes", "negative": "no", "prompt": prompt}
        return answer_pairs(tiny_model("llama"), pairs_from([one]), [SITE])[SITE].deltas

    assert torch.equal(read(None), read(QUESTION))
    assert not torch.allclose(read(None), read("Do you like dogs?"))
    assert choice_question("x", "y", "Do you?") == "Do you?\n\nChoices:\n (A) x\n (B) y"


def test_a_question_longer_than_the_context_is_a_sentence(tiny_model):
    with pytest.raises(DataError, match=r"more than the model's context of 192"):
        answer_pairs(tiny_model("llama"), pairs_from([("word " * 200, "no")]), [SITE])
