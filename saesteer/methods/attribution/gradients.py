"""Gradients of what a model says with respect to a vector added at a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.steering.teacher_forced import Pass, TeacherForced

if TYPE_CHECKING:
    from saesteer.steering import SteeringVector, Unit


def row_gradients(
    rows: TeacherForced,
    vector: SteeringVector | None = None,
    strength: float = 0.0,
    unit: Unit = "norm",
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """Return each row's gradient of its mean log-probability, and that log-probability.

    For a row with answer s, l(s; u) is the mean log-probability of its tokens with u added to the
    residual stream from the last prompt token on; the gradient is taken at u = 0, or on top of
    `vector` at `strength`.

    Args:
        rows: Rows prepared for the site.
        vector: What steers meanwhile.
        strength: How strongly.
        unit: The strength's unit.

    Returns:
        Gradients in nats per token and unit of residual stream, float32 on the CPU, and the
        log-probabilities in nats per token.
    """
    gradients: Tensor | None = None
    values = torch.zeros(rows.n_rows)
    # By a map, so that no name holds one pass's logits while the next one runs.
    for index, gradient, means in map(_of_pass, rows.open_passes(vector, strength, unit)):
        if gradients is None:
            gradients = torch.zeros((rows.n_rows, gradient.shape[1]))
        gradients[index] = gradient
        values[index] = means
    assert gradients is not None
    return gradients, values


def _of_pass(opened: tuple[Pass, Tensor]) -> tuple[list[int], Tensor, Tensor]:
    part, offset = opened
    counts = torch.bincount(part.row)
    weights, said = (1 / counts[part.row])[:, None], part.after[:, None]
    # The gradient of sum w log p with respect to the logits is w (one-hot - p): autograd would
    # hold four more arrays of their size.
    with torch.no_grad():
        push = torch.log_softmax(part.logits.float(), dim=-1)
        each = push.gather(1, said)[:, 0]
        push.exp_().mul_(-weights).scatter_add_(1, said, weights)
    (gradient,) = torch.autograd.grad(part.logits, offset, push.to(part.logits.dtype))
    means = torch.zeros(len(counts), device=each.device).index_add(0, part.row, each) / counts
    return part.index, gradient.float().cpu(), means.cpu()
