"""The Fisher metric of a site: what a small push costs in KL divergence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.steering.teacher_forced import Pass, TeacherForced
from saesteer.utils.errors import ConfigError


@dataclass(frozen=True, eq=False)
class FisherMetric:
    """The second-order cost of a vector added at a site, KL(u) ~ u' F u / 2 per token.

    Attributes:
        matrix: F in nats per token and squared unit of residual stream.
        n_samples: How many sampled gradients it was estimated from.
        n_tokens: How many tokens of text they were sampled on.
    """

    matrix: Float[np.ndarray, "d_model d_model"]
    n_samples: int
    n_tokens: int

    @cached_property
    def mean_diagonal(self) -> float:
        """Mean of the diagonal: the cost of a random direction of length 1, times two."""
        return float(np.trace(self.matrix) / len(self.matrix))

    def damped(self, ridge: float = 1.0) -> Float[np.ndarray, "d_model d_model"]:
        """Return F plus `ridge` times its mean diagonal on the diagonal."""
        return self.matrix + ridge * self.mean_diagonal * np.eye(len(self.matrix))

    def solve(
        self, gain: Float[np.ndarray, " d_model"], ridge: float = 1.0
    ) -> Float[np.ndarray, " d_model"]:
        """Return the natural gradient: `gain` multiplied by the inverse of the damped F.

        Args:
            gain: A gradient.
            ridge: As in `damped`.

        Raises:
            ConfigError: F has no inverse, which a ridge would give it.
        """
        # With a ridge r the condition number is at most about d_model / r.
        full = ridge > 1e-9 or np.linalg.matrix_rank(self.matrix, hermitian=True) == len(gain)
        if not (self.mean_diagonal > 0 and full):
            raise ConfigError(
                f"ridge: with {ridge:g} the Fisher metric of {self.n_samples} samples has no "
                "inverse; give a ridge above 0, such as 1, or more samples of neutral text."
            )
        return np.linalg.solve(self.damped(ridge), gain)

    def cost(self, vector: Float[np.ndarray, " d_model"]) -> float:
        """Return the KL per token that the metric predicts for a vector."""
        return float(vector @ self.matrix @ vector) / 2


def fisher_metric(rows: TeacherForced, *, n_samples: int = 24, seed: int = 0) -> FisherMetric:
    """Estimate the Fisher metric from answers that the model itself samples, token by token.

    At each position t of a text a token y_t is drawn from the model's own distribution; the
    gradient h of sum_t log p(y_t) with respect to a constant vector added at the site has
    E[h h'] = sum_t F_t, because the y_t are independent given the text and each score has mean
    zero. F is the mean of h h' over samples and texts, per token (Amari 1998, "Natural gradient
    works efficiently in learning").

    Args:
        rows: Neutral texts prepared for the site.
        n_samples: Draws for each text.
        seed: Seeds the draws.

    Raises:
        ConfigError: There are no draws.
    """
    if n_samples < 1:
        raise ConfigError(f"n_samples: {n_samples} draws measure nothing; give 1 or more.")
    generator = torch.Generator().manual_seed(seed)
    # By a map, so that no name holds one pass's logits while the next one runs.
    parts = map(partial(_squares, n_samples, generator), rows.open_passes())
    squares, counts = zip(*parts, strict=True)
    n_tokens = sum(counts)
    matrix = (torch.stack(squares).sum(dim=0) / (n_tokens * n_samples)).numpy()
    return FisherMetric(matrix, n_samples * rows.n_rows, n_tokens)


def _squares(
    n_samples: int, generator: torch.Generator, opened: tuple[Pass, Tensor]
) -> tuple[Tensor, int]:
    """Return the sum of h h' over the draws for one batch, and its tokens."""
    (_, logits, *_), offset = opened
    total = torch.zeros(offset.shape[1], offset.shape[1], dtype=torch.float64)
    probabilities = torch.log_softmax(logits.detach().float(), dim=-1).exp_().cpu()
    draws = [torch.multinomial(probabilities, 1, generator=generator) for _ in range(n_samples)]
    # The gradient of sum log p with respect to the logits is one-hot - p: one array for all draws.
    push = probabilities.neg_()
    for number, sampled in enumerate(draws, start=1):
        before = push.gather(1, sampled)
        push.scatter_(1, sampled, before + 1)
        (gradient,) = torch.autograd.grad(
            logits, offset, push.to(logits), retain_graph=number < n_samples
        )
        push.scatter_(1, sampled, before)
        rows_of_h = gradient.double().cpu()
        total += rows_of_h.T @ rows_of_h
    return total, len(logits)
