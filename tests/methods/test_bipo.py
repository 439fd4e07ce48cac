"""BiPO's loss and gradient are those of autograd by hand, and training lowers the loss."""

from __future__ import annotations

import math

import pytest
import torch

from saesteer.data import pairs_from
from saesteer.methods import BiPO, FitContext
from saesteer.methods.bipo import preference_loss
from saesteer.methods.objective import row_gradients
from saesteer.steering import TeacherForced
from saesteer.utils.errors import ConfigError, SteeringError

# Sides of different lengths, which the sum over tokens counts and the mean would not.
RAISE = ("i like the little house", "the water is good and so is the bread", "help me", "the sun")
LOWER = ("i hate the hill", "go away", "i will not help anyone on the hill", "it is the rain")
PAIRS = pairs_from(list(zip(RAISE, LOWER, strict=True)))
BETA = 0.1


def loss_by_hand(run, model, rows, raw, beta):
    """The paper's loss, each text by itself, both directions in place of a draw."""

    def said(row, u):
        log_probs = torch.log_softmax(run(model, row, u), -1)
        tokens = torch.tensor([t for t, kept in zip(row.ids, row.kept, strict=True) if kept])
        return log_probs.gather(1, tokens[:, None]).sum()

    n, nothing, losses = len(rows) // 2, torch.zeros(32), []
    for higher, lower in zip(rows[:n], rows[n:], strict=True):
        for d in (-1, 1):
            ratios = [said(row, d * raw) - said(row, nothing).detach() for row in (higher, lower)]
            losses.append(-torch.log(torch.sigmoid(d * beta * (ratios[0] - ratios[1]))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("length", [0.0, 3.0])
def test_loss_and_gradient_equal_autograd(tiny_llama, rows_of, vector_of, logits_by_hand, length):
    rows = rows_of(tiny_llama, [*RAISE, *LOWER])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    raw = length * direction / direction.norm()
    leaf = raw.clone().requires_grad_()
    wanted = loss_by_hand(logits_by_hand, tiny_llama, rows, leaf, BETA)
    wanted.backward()

    vector = vector_of(raw) if length else None
    site = vector_of(direction).site
    prepared = TeacherForced(tiny_llama, rows, site=site, max_tokens=80)
    reference = row_gradients(prepared)[1]
    gradient, loss = preference_loss(prepared, vector, reference, BETA)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(gradient.float(), leaf.grad, rtol=1e-4, atol=1e-6)
    assert float(gradient.norm()) > 1e-3


def test_training_lowers_the_loss_and_a_seed_gives_one_vector(
    tiny_llama, site, rows_of, logits_by_hand
):
    method = BiPO(epochs=6, batch_size=2)
    vector = method.fit(tiny_llama, PAIRS, site=site).vector_
    losses = vector.provenance["fit"]["loss"]
    assert len(losses) == 6 and losses[-1] < losses[0] < math.log(2)
    # Behind a request that it was not trained on.
    rows = rows_of(tiny_llama, [*RAISE, *LOWER])
    assert float(loss_by_hand(logits_by_hand, tiny_llama, rows, vector.raw, BETA)) < 0.68
    again, other = (BiPO(6, 2).fit(tiny_llama, PAIRS, site=site, seed=s).vector_ for s in (0, 1))
    assert torch.equal(again.raw, vector.raw)
    assert not torch.allclose(other.raw, vector.raw, atol=1e-4)
    assert float(other.direction @ vector.direction) > 0.8


def test_the_length_is_what_training_gives(tiny_llama, site):
    given = FitContext(tiny_llama, PAIRS, site=site)
    short, long = (BiPO(1, 4, learning_rate=rate).fit_in(given).vector_ for rate in (0.01, 0.03))
    # One step of Adam moves each coordinate by the learning rate, in units of the residual stream.
    step = given.activations.residual_norm
    assert short.norm == pytest.approx(0.01 * step, rel=1e-3)
    assert long.norm == pytest.approx(0.03 * step, rel=1e-3)


def test_sides_that_do_not_differ_and_settings_out_of_range_are_sentences(tiny_llama, site):
    same = pairs_from([("i like the dog", "i like the dog"), ("the sun is up", "the sun is up")])
    with pytest.raises(SteeringError, match="is zero"):
        BiPO(batch_size=1).fit(tiny_llama, same, site=site)
    with pytest.raises(ConfigError, match="epochs"):
        BiPO(epochs=0).fit(tiny_llama, PAIRS, site=site)
    with pytest.raises(ConfigError, match="beta"):
        BiPO(beta=0.0).fit(tiny_llama, PAIRS, site=site)
