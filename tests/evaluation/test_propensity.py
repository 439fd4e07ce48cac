"""Margins and effects are those of a plain loop, and their summary those of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.data import pairs_from
from saesteer.evaluation import PropensityMeter, TeacherForced, effect_of, statement_log_likelihoods
from saesteer.evaluation.statistics import item_interval
from saesteer.models import Site, chat_prompt, encode_statements, encode_texts, plain_model
from saesteer.steering import SteeringVector

PAIRS = pairs_from(
    [
        ("i like the little house", "i hate the hill"),
        ("the water is good and so is the bread and the wine", "go away"),
        ("help me", "i will not help anyone who stands on the hill"),
    ]
)
REQUEST = "tell me about the house on the hill by the water please"


def _loop(model, statement, request=REQUEST):
    """The mean log-probability of a statement's tokens, one row and no cache."""
    prompt = chat_prompt(model.tokenizer, request)
    whole = encode_texts(model.tokenizer, [prompt + statement])[0].ids
    n = len(encode_texts(model.tokenizer, [prompt])[0].ids)
    with torch.no_grad():
        logits = plain_model(model)(torch.tensor([whole])).logits[0].float()
    log_probs = torch.log_softmax(logits, -1)
    return float(np.mean([log_probs[i - 1, whole[i]] for i in range(n, len(whole))]))


def test_margins_equal_a_loop_over_statements(tiny_llama):
    margins = PropensityMeter(tiny_llama, PAIRS, request=REQUEST).margins()
    wanted = [_loop(tiny_llama, p.positive) - _loop(tiny_llama, p.negative) for p in PAIRS]
    np.testing.assert_allclose(margins, wanted, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "qwen3"])
def test_a_shared_prefix_changes_no_number(tiny_model, architecture):
    model = tiny_model(architecture)
    vector = SteeringVector.from_raw(
        torch.randn(int(model.cfg.d_model), generator=torch.Generator().manual_seed(1)),
        site=Site(1),
        model="tiny",
        residual_norm=1.0,
    )
    statements = [*PAIRS.positives, *PAIRS.negatives]
    rows = encode_statements(model.tokenizer, statements, REQUEST)
    together = TeacherForced(model, rows)
    alone = [TeacherForced(model, [row], max_tokens=1, share_prefix=False) for row in rows]
    for strength in (0.0, 1.5, -1.5):
        got = statement_log_likelihoods(together, vector, strength)
        wanted = [statement_log_likelihoods(part, vector, strength)[0] for part in alone]
        np.testing.assert_allclose(got, wanted, atol=2e-4)
    assert np.ptp(got - statement_log_likelihoods(together)) > 1e-3


def test_pairs_with_their_own_prompt_use_it(tiny_llama):
    own = pairs_from([{"positive": "yes", "negative": "no", "prompt": "is the water good"}])
    margins = PropensityMeter(tiny_llama, own, request=REQUEST).margins()
    wanted = _loop(tiny_llama, "yes", "is the water good") - _loop(
        tiny_llama, "no", "is the water good"
    )
    assert margins[0] == pytest.approx(wanted, abs=1e-4)


def test_the_effect_is_half_the_margins_travel():
    unsteered = np.array([[-2.0, -3.0], [-2.5, -2.0]])
    plus = np.array([[-1.5, -2.0], [-3.0, -2.5]])
    minus = np.array([[-2.6, -3.4], [-2.4, -2.2]])
    effect = effect_of(unsteered, plus, minus)
    travel = ((plus[0] - plus[1]) - (minus[0] - minus[1])) / 2
    assert effect.effect == pytest.approx(travel.mean())
    assert effect.moved_share == 1.0
    assert effect.common_shift == pytest.approx(((plus + minus) / 2 - unsteered).mean())
    assert effect.low <= effect.effect <= effect.high


def test_the_interval_is_that_of_a_percentile_bootstrap():
    rng = np.random.default_rng(3)
    travel = rng.normal(0.4, 0.2, 200)
    plus = np.stack([travel, -travel])
    effect = effect_of(np.zeros_like(plus), plus, -plus)
    # As `saesteer compare` draws it, to the last digit.
    assert (effect.low, effect.high) == item_interval(2 * travel)[1:]
    draws = 2 * travel[rng.integers(0, 200, (4000, 200))].mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    assert effect.low == pytest.approx(low, abs=0.01)
    assert effect.high == pytest.approx(high, abs=0.01)


def test_one_pair_has_no_interval_but_an_effect():
    one = np.array([[1.0], [0.0]])
    effect = effect_of(np.zeros((2, 1)), one, -one)
    assert effect.effect == effect.low == effect.high == 1.0
