"""Scores against scikit-learn, and what their intervals mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from saesteer.probes.scores import Scores, _weighted_auroc, control_labels, score


def made(n_classes: int, n: int = 300, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[labels]
    # Rounded, so that there are ties.
    probabilities = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 1)
    return labels, probabilities


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_points_are_those_of_scikit_learn(n_classes):
    labels, p = made(n_classes)
    found = score(labels, p, resamples=0)
    predicted = p.argmax(axis=1)
    assert found.accuracy.value == pytest.approx(accuracy_score(labels, predicted))
    assert found.macro_f1.value == pytest.approx(f1_score(labels, predicted, average="macro"))
    classes = [1] if n_classes == 2 else range(n_classes)
    areas = [roc_auc_score(labels == c, p[:, c]) for c in classes]
    assert found.auroc.value == pytest.approx(np.mean(areas))
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted))
    assert found.accuracy.low is None


def test_a_resample_is_scored_as_scikit_learn_scores_weighted_texts():
    labels, p = made(2)
    weights = np.random.default_rng(1).integers(0, 4, (3, len(labels))).astype(np.float32)
    found = _weighted_auroc(weights, labels == 1, p[:, 1])
    expected = [roc_auc_score(labels, p[:, 1], sample_weight=w) for w in weights]
    assert found == pytest.approx(expected)


def test_an_interval_holds_its_point_and_narrows_with_more_texts():
    found: Any
    wide: Any
    narrow: Any
    wide, narrow = (score(*made(3, n)).macro_f1 for n in (60, 2000))
    for found in (wide, narrow):
        assert found.low < found.value < found.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 3


def test_texts_that_belong_together_widen_the_interval():
    labels, p = made(2, 100)
    tenfold, many = np.repeat(labels, 10), np.repeat(p, 10, axis=0)
    apart: Any = score(tenfold, many).accuracy
    together: Any = score(tenfold, many, np.repeat(np.arange(100), 10)).accuracy
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_a_class_that_is_never_met_leaves_no_false_figure():
    found = score(np.array([0, 0, 0, 0]), np.tile([0.8, 0.2], (4, 1)), resamples=20)
    assert found.accuracy.value == 1.0
    assert found.auroc.value is None and found.macro_f1.value is None


def test_control_labels_keep_the_class_shares_and_forget_the_texts():
    labels = made(3, 3000)[0]
    shuffled = control_labels(labels, seed=0)
    assert np.array_equal(np.bincount(shuffled), np.bincount(labels))
    assert (shuffled == labels).mean() == pytest.approx(1 / 3, abs=0.03)
    assert np.array_equal(shuffled, control_labels(labels, seed=0))


def test_scores_survive_json():
    found = score(*made(3))
    again = Scores.from_dict(found.as_dict())
    assert again.macro_f1 == found.macro_f1
    assert np.array_equal(again.confusion, found.confusion)
