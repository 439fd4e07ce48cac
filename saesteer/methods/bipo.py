"""A dense vector trained by preference on the pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.methods.objective import NO_DIFFERENCE, row_gradients
from saesteer.steering import SteeringVector

if TYPE_CHECKING:
    from saesteer.steering.teacher_forced import TeacherForced


@dataclass(repr=False, eq=False)
class BiPO(Method):
    """A vector trained by bi-directional preference optimization on the pairs.

    After Cao et al. (2024, arXiv 2406.00045): added, the vector should make the positive text of a
    pair likelier against the negative one than it was, and taken away the negative one. Its length
    is trained with it.

    Attributes:
        epochs: How often each pair is trained on, in both directions.
        batch_size: Pairs of a step.
        beta: How much a nat counts, as in DPO.
        learning_rate: Of Adam, in units of the residual stream's root mean square; it falls to 0
            along a cosine.

    Example:
        >>> vector = ss.BiPO(epochs=1).fit(model, train, site=sae.site).vector_
        >>> len(vector.provenance["fit"]["loss"])
        1
    """

    _name = "bipo"
    epochs: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 4
    beta: PositiveFloat = 0.1
    learning_rate: PositiveFloat = 0.02

    def _vector(self, given: FitContext) -> SteeringVector:
        raw, losses = self._train(given)
        fit = {"loss": losses}
        return given.vector(raw, self.name, provenance={"settings": self.get_params(), "fit": fit})

    def _train(self, given: FitContext) -> tuple[Float[Tensor, " d_model"], list[float]]:
        """Return the raw vector, and each epoch's mean loss."""
        deltas, generator = given.deltas, given.generator(0)
        n, d_model = deltas.shape
        # The same pairs stay together, so that what lies below the site is computed once.
        parts = torch.randperm(n, generator=generator).split(self.batch_size)
        statements = given.statements(range(n))
        batches = [statements.subset([*part.tolist(), *(n + part).tolist()]) for part in parts]
        given.progress.say(f"Training on the preference of {n} pairs")
        unsteered = [row_gradients(rows) for rows in batches]
        if not _differ([gradients for gradients, _ in unsteered]):
            return torch.zeros(d_model), []

        scale = given.activations.residual_norm / d_model**0.5
        weights = torch.zeros(d_model, dtype=torch.float64)
        optimizer = torch.optim.Adam([weights], lr=self.learning_rate)
        n_steps = self.epochs * len(batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        losses = []
        for _ in range(self.epochs):
            total = 0.0
            for place in torch.randperm(len(batches), generator=generator).tolist():
                vector = given.vector(scale * weights, self.name) if weights.any() else None
                reference = unsteered[place][1]
                gradient, loss = preference_loss(batches[place], vector, reference, self.beta)
                weights.grad = scale * gradient
                optimizer.step()
                schedule.step()
                total += loss
            losses.append(total / len(batches))
        return scale * weights, losses


def preference_loss(
    rows: TeacherForced,
    vector: SteeringVector | None,
    reference: Float[Tensor, " row"],
    beta: float,
) -> tuple[Float[Tensor, " d_model"], float]:
    """Return the loss's gradient with respect to the raw vector, and the loss in nats.

    With L(s; u) the log-probability of a text with u added, and M(u) = L(s+; u) - L(s-; u),

        loss(v) = - mean over pairs and d in {-1, 1} of log sigmoid(d beta [M(d v) - M(0)])

    Args:
        rows: The positive texts, then the negative ones in the same order.
        vector: v; None for 0.
        reference: Each row's mean log-probability without steering.
        beta: How much a nat counts.
    """
    n, counts = rows.n_rows // 2, torch.tensor(rows.scored)
    gradient: Tensor | None = None
    loss = 0.0
    # The paper draws d for each batch. Both at once have the same mean, and swapped sides give
    # exactly the opposite vector.
    for d in (1, -1):
        length = 0.0 if vector is None else d * vector.norm
        gradients, values = row_gradients(rows, vector, length, "raw")
        said = counts * (values - reference)
        margin = d * beta * (said[:n] - said[n:]).double()
        gains = (counts[:, None] * gradients).double()
        # d enters twice, by the sign of the margin and by d v.
        pull = torch.sigmoid(-margin)[:, None] * (gains[:n] - gains[n:])
        part = -beta * pull.mean(dim=0) / 2
        gradient = part if gradient is None else gradient + part
        loss += float(functional.softplus(-margin).mean()) / 2
    assert gradient is not None
    return gradient, loss


def _differ(gradients: list[Float[Tensor, "row d_model"]]) -> bool:
    """Whether the sides' gradients differ by more than rounding, which Adam would blow up."""
    sides = [part.unflatten(0, (2, -1)) for part in gradients]
    apart = torch.cat([positive - negative for positive, negative in sides]).norm(dim=1)
    size = torch.cat(gradients).norm(dim=1)
    return not bool(apart.mean() <= NO_DIFFERENCE * size.mean())
