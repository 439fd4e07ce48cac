"""The numbers at the answer's position, against numpy by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.patching.metrics import METRIC_NAMES, MetricRows, metric_named
from saesteer.utils.errors import ConfigError


@pytest.fixture
def logits():
    return torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 3.0, 3.0, -2.0]])


@pytest.fixture
def rows(logits):
    clean = torch.tensor([[2.0, -1.0, 0.5, 0.0], [1.0, 0.0, 2.0, 0.0]])
    return MetricRows(torch.tensor([0, 2]), torch.tensor([3, 0]), clean)


def _softmax(values):
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def test_logit_difference_is_right_less_wrong(logits, rows):
    assert metric_named("logit_difference").score(logits, rows).tolist() == [2.0, 3.0]


def test_log_probability_is_that_of_the_right_answer(logits, rows):
    found = metric_named("answer_log_probability").score(logits, rows).numpy()
    assert found == pytest.approx(np.log(_softmax(logits.numpy())[[0, 1], [0, 2]]), abs=1e-6)


def test_kl_is_zero_where_nothing_changed_and_counts_from_clean(logits, rows):
    found = metric_named("kl").score(logits, rows).numpy()
    p, q = _softmax(rows.clean.numpy()), _softmax(logits.numpy())
    assert found == pytest.approx((p * np.log(p / q)).sum(axis=1), abs=1e-6)
    assert found[0] == pytest.approx(0.0, abs=1e-7) and found[1] > 0.1


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_every_metric_has_a_gradient(logits, rows, name):
    leaf = logits.clone().requires_grad_()
    metric_named(name).score(leaf, rows).sum().backward()
    assert leaf.grad is not None and leaf.grad[1].abs().sum() > 0


def test_a_metric_of_answers_alone_needs_two_columns(logits):
    metric = metric_named("logit_difference")
    columns = logits.gather(1, torch.tensor([[0, 3], [2, 0]]))
    rows = MetricRows(torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long))
    assert metric.answers_only
    assert metric.score(columns, rows).tolist() == [2.0, 3.0]


def test_half_precision_logits_are_scored_in_full(rows):
    wide = torch.linspace(-3, 3, 50_000).repeat(2, 1)
    rows = MetricRows(rows.right, rows.wrong, wide)
    halves = metric_named("answer_log_probability").score(wide.bfloat16(), rows)
    exact = metric_named("answer_log_probability").score(wide.bfloat16().double(), rows)
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, exact.float(), atol=1e-4, rtol=0)


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"did you mean 'logit_difference'\?.*kl"):
        metric_named("logit_diference")


def test_kl_without_clean_logits_says_what_is_missing(logits, rows):
    with pytest.raises(ConfigError, match=r"MetricRows\.clean"):
        metric_named("kl").score(logits, MetricRows(rows.right, rows.wrong))
