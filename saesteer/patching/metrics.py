"""What is measured at the answer's position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class MetricRows:
    """What a metric may need to know of every row it scores.

    Attributes:
        right: The column of `logits` that holds the right answer.
        wrong: The column of `logits` that holds the wrong answer.
        clean: The clean run's logits over the vocabulary, for metrics that compare with it; None
            for metrics over the answers alone.
    """

    right: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]
    clean: Float[Tensor, "row vocab"] | None = None


@dataclass(frozen=True)
class Metric:
    """A function of the logits at the answer's position.

    Attributes:
        name: Its name in tables and figures.
        score: From logits [row, column] and what is known of the rows to one number per row;
            differentiable.
        answers_only: True where it reads the two answers' logits alone: then `logits` has two
            columns, right and wrong, and the rest of the unembedding is never computed.
    """

    name: str
    score: Callable[[Float[Tensor, "row column"], MetricRows], Float[Tensor, " row"]]
    answers_only: bool = False
