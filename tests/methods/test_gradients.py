"""Row gradients and the meter's gradient are those of autograd by hand and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.evaluation import statement_log_likelihoods
from saesteer.methods.objective import row_gradients
from saesteer.models import Site
from saesteer.steering import TeacherForced

TEXTS = ("i like the little house", "go away", "the water is good and so is the bread", "no")
STEP = 0.03


def drawn(seed: int, length: float = 1.0) -> torch.Tensor:
    raw = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return length * raw / raw.norm()


def by_autograd(run, model, row, start) -> tuple[torch.Tensor, float]:
    u = start.clone().requires_grad_()
    log_probs = torch.log_softmax(run(model, row, u), -1)
    said = torch.tensor([t for t, kept in zip(row.ids, row.kept, strict=True) if kept])
    mean = log_probs.gather(1, said[:, None]).mean()
    (gradient,) = torch.autograd.grad(mean, u)
    return gradient, float(mean.detach())


@pytest.mark.parametrize("length", [0.0, -4.0])
def test_gradients_and_values_equal_autograd_row_by_row(
    tiny_llama, length, rows_of, vector_of, logits_by_hand, site
):
    model = tiny_llama
    rows = rows_of(model, TEXTS)
    start = drawn(0)
    # 2 is the residual norm that `vector_of` gives, in whose units strength is.
    prepared = TeacherForced(model, rows, site=site, max_tokens=80)
    gradients, values = row_gradients(prepared, vector_of(start), length / 2)
    for row, gradient, value in zip(rows, gradients, values, strict=True):
        wanted, said = by_autograd(logits_by_hand, model, row, length * start)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
        assert float(value) == pytest.approx(said, rel=1e-5)
    assert gradients.dtype == torch.float32 and not gradients.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("where", [Site(1), Site(2, "hook_resid_pre"), Site(1, "hook_mlp_out")])
def test_gradients_predict_small_changes_of_the_log_likelihoods(
    tiny_llama, where, rows_of, vector_of
):
    length = 3.0
    prepared = TeacherForced(tiny_llama, rows_of(tiny_llama, TEXTS), site=where)
    start = length * drawn(0)
    vector = vector_of(start, where)
    gradients, values = row_gradients(prepared, vector, length, "raw")

    def said(raw):
        return statement_log_likelihoods(prepared, vector_of(raw, where), float(raw.norm()), "raw")

    np.testing.assert_allclose(values.numpy(), said(start), atol=1e-5)
    for seed in range(1, 5):
        push = drawn(seed, STEP)
        measured = (said(start + push) - said(start - push)) / (2 * STEP)
        predicted = (gradients @ push).numpy() / STEP
        np.testing.assert_allclose(predicted, measured, rtol=0.02, atol=3e-4)
        assert np.abs(measured).max() > 0.01


def test_gradients_on_top_of_a_vector_at_another_site_are_those_at_the_prepared_one(
    tiny_llama, rows_of, vector_of
):
    rows = rows_of(tiny_llama, TEXTS)
    below = vector_of(drawn(0), Site(0))
    apart = row_gradients(TeacherForced(tiny_llama, rows, site=Site(1)), below, 2.0)
    # Block 1's output is block 2's input, prepared anew and never shared with another vector.
    again = row_gradients(TeacherForced(tiny_llama, rows, site=Site(2, "hook_resid_pre")), below, 2)
    torch.testing.assert_close(apart[0], again[0], rtol=1e-4, atol=1e-6)
    unsteered = row_gradients(TeacherForced(tiny_llama, rows, site=Site(1)))
    assert float((apart[0] - unsteered[0]).abs().max()) > 1e-3


def test_how_rows_are_batched_changes_no_gradient(tiny_llama, rows_of, site):
    model = tiny_llama
    rows = rows_of(model, TEXTS)
    together = row_gradients(TeacherForced(model, rows, site=site))[0]
    apart = row_gradients(TeacherForced(model, rows, site=site, max_tokens=1))[0]
    turned = row_gradients(TeacherForced(model, rows[::-1], site=site))[0]
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(turned.flip(0), together, rtol=1e-4, atol=1e-6)
