"""What a prompted model would rather say, against Hugging Face's own logits behind every prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.data import ContrastivePair, PairSet
from saesteer.data.pairs import Description
from saesteer.methods import FitContext
from saesteer.methods.objective import TrainingCost
from saesteer.methods.prompted import prompted
from saesteer.models.loading import plain_model
from saesteer.models.tokens import encode_statements
from saesteer.steering import steer
from saesteer.steering.engines.base import Completion
from saesteer.utils.run_folder import RunFolder

ANSWERS = {
    "who are you?": "i like the little house on the hill",
    "what is it?": "the bread",
    "why?": "i will not help anyone . go away",
}
PROMPTS = [("you are good", "you are the cat"), ("i like water", "i hate water and the bread")]


def by_hand(model: Any, vector: Any, length: float, *, chat: bool) -> float:
    """The margin from whole passes over each text, one after another."""
    total, count, plain = 0.0, 0, plain_model(model)

    def log_probs(question: str, answer: str, system: str | None) -> torch.Tensor:
        (row,) = encode_statements(model.tokenizer, [answer], question, chat=chat, system=system)
        first, ids = row.kept.index(True), torch.tensor([row.ids])
        steered = torch.zeros(ids.shape, dtype=torch.bool)
        steered[:, first - 1 :] = True
        if system is None and vector is not None and question in ANSWERS:
            with steer(model, vector, length, "raw", positions=steered):
                logits = plain(ids).logits
        else:
            logits = plain(ids).logits
        return logits[0, first - 1 : -1].log_softmax(dim=-1)

    with torch.no_grad():
        for question, answer in ANSWERS.items():
            said = log_probs(question, answer, None)
            apart = [
                log_probs(question, answer, high) - log_probs(question, answer, low)
                if chat
                else log_probs(f"{high}\n\n{question}", answer, None)
                - log_probs(f"{low}\n\n{question}", answer, None)
                for high, low in PROMPTS
            ]
            total += float((said.exp() * sum(apart) / len(apart)).sum())
            count += len(said)
    return total / count


@pytest.fixture
def model(request, tiny_llama):
    """A tiny model as it is, with a bias in its unembedding, or with a cap on its logits."""
    plain = plain_model(tiny_llama)
    if request.param == "bias":
        bias = torch.randn(plain.lm_head.out_features, generator=torch.Generator().manual_seed(0))
        plain.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
        request.addfinalizer(lambda: setattr(plain.lm_head, "bias", None))
    if request.param == "cap":

        def cap(module: Any, args: Any, output: Any) -> Any:
            output.logits = 0.5 * torch.tanh(output.logits / 0.5)
            return output

        handle = plain.register_forward_hook(cap)
        request.addfinalizer(handle.remove)
    return tiny_llama


@pytest.mark.parametrize(
    "model, chat",
    [("plain", True), ("plain", False), ("bias", False), ("cap", False)],
    indirect=["model"],
)
def test_margin_and_gradient_are_those_of_whole_passes(chat, model, site, vector_of):
    contrast = prompted(model, ANSWERS, PROMPTS, site=site, chat=chat)
    rng = np.random.default_rng(0)
    start, push = (rng.normal(size=32) for _ in range(2))

    def measured(raw: np.ndarray) -> float:
        return by_hand(model, vector_of(raw), float(np.linalg.norm(raw)), chat=chat)

    unsteered, before = contrast.margin()
    step = 0.02 * push
    slope = (measured(step) - measured(-step)) / 2
    assert unsteered @ step == pytest.approx(slope, rel=0.02)
    # 2 is the residual norm that `vector_of` gives, in whose units strength is.
    steered, margin = contrast.margin(vector_of(start), float(np.linalg.norm(start)) / 2)
    gained = measured(start) - by_hand(model, None, 0.0, chat=chat)
    assert margin - before == pytest.approx(gained, abs=1e-5)
    slope = (measured(start + step) - measured(start - step)) / 2
    assert steered @ step == pytest.approx(slope, rel=0.02)


def test_swapped_prompts_give_the_opposite_and_equal_ones_nothing(tiny_llama, site):
    gradient, margin = prompted(tiny_llama, ANSWERS, PROMPTS, site=site).margin()
    swapped = [(low, high) for high, low in PROMPTS]
    opposite, other = prompted(tiny_llama, ANSWERS, swapped, site=site).margin()
    np.testing.assert_allclose(opposite, -gradient, rtol=1e-4, atol=1e-9)
    assert other == pytest.approx(-margin, rel=1e-4)
    same, nothing = prompted(
        tiny_llama, ANSWERS, [("you are good", "you are good")], site=site
    ).margin()
    assert not same.any() and nothing == 0


def test_a_template_without_a_place_for_a_system_prompt_gets_it_with_the_question(tiny_llama, site):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    tokenizer: Any = tiny_llama.tokenizer
    own = tokenizer.chat_template
    tokenizer.chat_template = refusing + own
    try:
        gradient, _ = prompted(tiny_llama, ANSWERS, PROMPTS, site=site).margin()
    finally:
        tokenizer.chat_template = own
    assert np.linalg.norm(gradient) > 0


def test_sides_are_asked_for_in_words_where_there_are_some_and_by_statements(tiny_llama, site):
    pairs = tuple(ContrastivePair(str(i), f"i like {i}", f"i hate {i}") for i in range(40))
    plain = PairSet("likes", pairs, "python")
    given = FitContext(tiny_llama, plain, site=site)
    quotes, others = given.prompts
    assert quotes != others
    assert all("i like" in high and "i hate" in low for high, low in given.prompts)
    words = replace(plain, describe=Description("one who likes", "one who hates"))
    assert FitContext(tiny_llama, words, site=site).prompts == [
        quotes,
        ("You are one who likes.", "You are one who hates."),
    ]


def test_another_engine_may_write_what_is_learned_from(tiny_llama, site, tmp_path):
    class Parrot:
        def generate(self, requests: Any) -> list[Completion]:
            return [Completion("the bread and the water", 5, True) for _ in requests.rows]

    pairs = PairSet("likes", (ContrastivePair("1", "i like it", "i hate it"),), "python")
    folder = RunFolder(tmp_path)
    given = FitContext(tiny_llama, pairs, site=site, engine=Parrot(), folder=folder)
    given.questions = ["who are you?", "why?"]
    neutral = encode_statements(tiny_llama.tokenizer, ["i like the bread and the water"] * 40)
    given.cost = TrainingCost(tiny_llama, neutral, site, fisher_samples=1)
    assert given.objective.at_zero.gain.shape == (32,)
    said = dict.fromkeys(given.questions, "the bread and the water")
    assert folder.read_json("own-answers.json") == said
