"""BiPO's loss and gradient are those of autograd by hand, and training lowers the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from saesteer.data import pairs_from
from saesteer.methods import BiPO, FitContext
from saesteer.methods.bipo import preference_loss
from saesteer.methods.objective import row_gradients
from saesteer.steering import TeacherForced
from tests.methods.conftest import REQUEST

# Sides of different lengths, which a sum over tokens counts and a mean would not.
RAISE = ("i like the little house", "the water is good and so is the bread", "help me", "the sun")
LOWER = ("i hate the hill", "go away", "i will not help anyone on the hill", "it is the rain")
PAIRS = pairs_from(
    {"positive": higher, "negative": lower, "prompt": REQUEST}
    for higher, lower in zip(RAISE, LOWER, strict=True)
)
BETA = 0.1


def loss_by_hand(run: Any, model: Any, rows: Any, raw: torch.Tensor) -> torch.Tensor:
    """The paper's loss, each text by itself, with both directions in place of a draw."""

    def said(row: Any, u: torch.Tensor) -> torch.Tensor:
        log_probs = torch.log_softmax(run(model, row, u), -1)
        tokens = torch.tensor([t for t, kept in zip(row.ids, row.kept, strict=True) if kept])
        return log_probs.gather(1, tokens[:, None]).sum()

    n, nothing, losses = len(rows) // 2, torch.zeros(32), []
    for higher, lower in zip(rows[:n], rows[n:], strict=True):
        for d in (-1, 1):
            ratios = [said(row, d * raw) - said(row, nothing).detach() for row in (higher, lower)]
            losses.append(-torch.log(torch.sigmoid(d * BETA * (ratios[0] - ratios[1]))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("length", [0.0, 3.0])
def test_loss_and_gradient_equal_autograd(
    tiny_llama, site, rows_of, vector_of, logits_by_hand, length
):
    rows = rows_of(tiny_llama, [*RAISE, *LOWER])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    raw = (length * direction / direction.norm()).requires_grad_()
    wanted = loss_by_hand(logits_by_hand, tiny_llama, rows, raw)
    (slope,) = torch.autograd.grad(wanted, raw)

    prepared = TeacherForced(tiny_llama, rows, site=site, max_tokens=80)
    reference = row_gradients(prepared)[1]
    vector = vector_of(raw.detach()) if length else None
    gradient, loss = preference_loss(prepared, vector, reference, BETA)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(gradient.float(), slope, rtol=1e-3, atol=1e-5)
    assert float(gradient.norm()) > 1e-3


def test_training_lowers_the_loss_and_a_seed_gives_one_vector(
    tiny_llama, site, rows_of, logits_by_hand
):
    given, other = (FitContext(tiny_llama, PAIRS, site=site, seed=seed) for seed in (0, 1))
    method = BiPO(epochs=10, batch_size=2, beta=BETA)
    vector = method.fit_in(given).vector_
    fit: Any = vector.provenance["fit"]
    assert len(fit["loss"]) == 10 and fit["loss"][-1] < fit["loss"][0]
    rows = rows_of(tiny_llama, [*RAISE, *LOWER])
    reached = float(loss_by_hand(logits_by_hand, tiny_llama, rows, vector.raw))
    assert reached < math.log(2) - 0.02
    assert reached == pytest.approx(fit["loss"][-1], abs=0.02)
    assert torch.equal(method.fit_in(given).vector_.raw, vector.raw)
    assert not torch.allclose(method.fit_in(other).vector_.raw, vector.raw, atol=1e-4)


def test_the_length_is_what_training_gives(tiny_llama, site):
    given = FitContext(tiny_llama, PAIRS, site=site)
    short, long = (BiPO(1, 4, learning_rate=rate).fit_in(given).vector_ for rate in (0.01, 0.03))
    # One step of Adam moves each coordinate by the learning rate, in units of the residual stream.
    step = given.activations.residual_norm
    assert short.norm == pytest.approx(0.01 * step, rel=1e-3)
    assert long.norm == pytest.approx(0.03 * step, rel=1e-3)
