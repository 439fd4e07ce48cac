"""Gradients of what a model says with respect to a vector added at a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.steering.teacher_forced import TeacherForced

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
    for (index, logits, after, row, _), offset in rows.open_passes(vector, strength, unit):
        chosen = torch.log_softmax(logits.float(), dim=-1)
        each = chosen.gather(1, after[:, None])[:, 0]
        counts = torch.bincount(row).float()
        means = torch.zeros_like(counts).index_add(0, row, each) / counts
        (gradient,) = torch.autograd.grad(means.sum(), offset)
        if gradients is None:
            gradients = torch.zeros((rows.n_rows, gradient.shape[1]))
        gradients[index] = gradient.float().cpu()
        values[index] = means.detach().float().cpu()
    assert gradients is not None
    return gradients, values
