"""What is measured at the answer's position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.utils.errors import ConfigError
from saesteer.utils.text import did_you_mean, shorten, spoken_list


@dataclass(frozen=True)
class MetricRows:
    """What a metric may need to know of every row it scores."""

    # The columns of `logits` that hold the right and the wrong answer.
    right: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]
    # The clean run's logits over the vocabulary, for metrics that compare with it; None for
    # metrics over the answers alone.
    clean: Float[Tensor, "row vocab"] | None = None


@dataclass(frozen=True)
class Metric:
    """A function of the logits at the answer's position."""

    # Its name in tables and figures.
    name: str
    # From logits [row, column] and what is known of the rows to one number per row; differentiable.
    score: Callable[[Float[Tensor, "row column"], MetricRows], Float[Tensor, " row"]]
    # True where it reads the two answers' logits alone: then `logits` has two columns, right and
    # wrong, and the rest of the unembedding is never computed.
    answers_only: bool = False


def _logit_difference(logits: Tensor, rows: MetricRows) -> Float[Tensor, " row"]:
    """Return the right answer's logit less the wrong answer's (Wang et al. 2022, section 3)."""
    return _column(logits, rows.right) - _column(logits, rows.wrong)


def _answer_log_probability(logits: Tensor, rows: MetricRows) -> Float[Tensor, " row"]:
    """Return the right answer's log-probability in nats."""
    # In float32: a log-softmax over a whole vocabulary loses digits in half precision.
    return _column(logits.float().log_softmax(dim=-1), rows.right)


def _kl_from_clean(logits: Tensor, rows: MetricRows) -> Float[Tensor, " row"]:
    """Return KL(clean || patched) over the vocabulary in nats; 0 where nothing changed."""
    if rows.clean is None:
        raise ConfigError(
            "metric 'kl' compares with the clean run, and its logits are not given; put them in "
            "MetricRows.clean"
        )
    clean = rows.clean.float().log_softmax(dim=-1)
    return (clean.exp() * (clean - logits.float().log_softmax(dim=-1))).sum(dim=-1)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_difference", _logit_difference, answers_only=True),
        Metric("answer_log_probability", _answer_log_probability),
        Metric("kl", _kl_from_clean),
    )
}


def metric_named(name: str | Metric) -> Metric:
    """Return a metric by its name.

    Raises:
        ConfigError: There is no such metric; the sentence lists them.
    """
    if isinstance(name, Metric):
        return name
    if name not in METRICS:
        raise ConfigError(
            f"metric is {shorten(name)}{did_you_mean(str(name), tuple(METRICS))}; choose one of "
            f"{spoken_list(tuple(METRICS))}, or give a saesteer.patching.metrics.Metric"
        )
    return METRICS[name]


def scores(
    metric: Metric,
    logits: Float[Tensor, "row column"],
    answers: Int[Tensor, "row 2"],
    clean: Float[Tensor, "row vocab"] | None = None,
) -> Float[Tensor, " row"]:
    """Return every row's number."""
    if not metric.answers_only:
        return metric.score(logits, MetricRows(answers[:, 0], answers[:, 1], clean))
    both = logits if logits.shape[1] == 2 else logits.gather(1, answers)
    first = torch.zeros_like(answers[:, 0])
    return metric.score(both, MetricRows(first, first + 1))


def _column(
    logits: Float[Tensor, "row column"], columns: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    return logits.gather(1, columns[:, None])[:, 0]
