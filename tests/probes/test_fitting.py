"""Fitting and scoring against scikit-learn by hand, and what intervals mean."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from saesteer.probes.fitting import FitSettings, Parts, _weighted_auroc, fit_probe, folds, score
from saesteer.utils.errors import DataError

SETTINGS = FitSettings(c=[0.001, 0.03, 1.0], tol=1e-6, max_iter=2000)


def made(n_classes: int = 3, n: int = 400, d: int = 12):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, d))
    x = 3 * rng.normal(size=(n, d)) * np.linspace(0.1, 10, d) + centres[labels] * 4 + 7
    return x.astype(np.float32), labels, np.arange(n) // 4


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_is_scikit_learns_at_the_strength_that_cross_validation_likes_best(n_classes):
    x, labels, groups = made(n_classes)
    fitted = fit_probe(x, labels, groups, SETTINGS, seed=3)
    by_hand = {}
    for c in SETTINGS.c:
        losses = []
        for inner, outer in folds(labels, groups, 3, 3):
            assert not set(groups[inner]) & set(groups[outer])
            model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
            model.fit(x[inner], labels[inner])
            losses.append(log_loss(labels[outer], model.predict_proba(x[outer])))
        by_hand[c] = np.mean(losses)
    assert fitted.c == min(by_hand, key=lambda c: by_hand[c])
    assert fitted.cv_loss == pytest.approx(by_hand, rel=1e-3)
    whole = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.c, tol=1e-8, max_iter=5000))
    whole.fit(x.astype(np.float64), labels)
    assert fitted.converged
    assert fitted.probabilities(x) == pytest.approx(whole.predict_proba(x), abs=2e-3)
    assert fitted.weight.shape == ((1 if n_classes == 2 else 3), 12)


def test_a_constant_dimension_does_no_harm_and_balanced_weights_help_the_rare_class():
    x, labels, groups = made(2, n=600)
    x[:, 3] = 5.0
    rare = np.flatnonzero((labels == 0) | (np.arange(600) % 20 == 1))
    x, labels, groups = x[rare], labels[rare], groups[rare]
    settings = SETTINGS.model_copy(update={"class_weight": "balanced"})
    found = [fit_probe(x, labels, groups, s).probabilities(x)[:, 1] for s in (SETTINGS, settings)]
    assert found[1][labels == 1].mean() > found[0][labels == 1].mean()


def test_what_cannot_be_fitted_is_refused():
    x, labels, groups = made()
    with pytest.raises(DataError, match="all training texts have one class"):
        fit_probe(x, labels * 0, groups, SETTINGS)
    with pytest.raises(DataError, match="a class has 2 groups of texts"):
        fit_probe(x, labels, np.arange(len(x)) % 2, SETTINGS)
    x[5, 2] = np.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_probe(x, labels, groups, SETTINGS)


def guesses(n_classes: int, n: int = 300):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[labels]
    # Rounded, so that there are ties.
    return labels, np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 1)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_points_and_resamples_are_scored_as_scikit_learn_scores_them(n_classes):
    labels, p = guesses(n_classes)
    found = score(labels, p, resamples=0)
    predicted = p.argmax(axis=1)
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["macro_f1"]["value"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    classes = [1] if n_classes == 2 else range(n_classes)
    areas = [roc_auc_score(labels == c, p[:, c]) for c in classes]
    assert found["auroc"]["value"] == pytest.approx(np.mean(areas))
    assert np.array_equal(found["confusion"], confusion_matrix(labels, predicted))
    assert found["accuracy"]["low"] is None
    weights = np.random.default_rng(1).integers(0, 4, (3, len(labels))).astype(np.float32)
    expected = [roc_auc_score(labels == 1, p[:, 1], sample_weight=w) for w in weights]
    assert _weighted_auroc(weights, labels == 1, p[:, 1]) == pytest.approx(expected)


def test_an_interval_narrows_with_more_texts_and_widens_where_they_belong_together():
    wide, narrow = (score(*guesses(3, n))["macro_f1"] for n in (60, 2000))
    for found in (wide, narrow):
        assert found["low"] < found["value"] < found["high"]
    assert narrow["high"] - narrow["low"] < (wide["high"] - wide["low"]) / 3

    labels, p = guesses(2, 100)
    tenfold, many = np.repeat(labels, 10), np.repeat(p, 10, axis=0)
    apart = score(tenfold, many)["accuracy"]
    together = score(tenfold, many, np.repeat(np.arange(100), 10))["accuracy"]
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])

    # A class that is never met leaves no false figure.
    found = score(np.array([0, 0, 0, 0]), np.tile([0.8, 0.2], (4, 1)), resamples=20)
    assert found["accuracy"]["value"] == 1.0
    assert found["auroc"]["value"] is None and found["macro_f1"]["value"] is None


def test_control_labels_keep_the_class_shares_and_forget_the_texts():
    labels = guesses(3, 3000)[0]
    each = np.arange(3000)
    shuffled = Parts(labels, each, each, each, SETTINGS).shuffled().labels
    assert np.array_equal(np.bincount(shuffled), np.bincount(labels))
    assert (shuffled == labels).mean() == pytest.approx(1 / 3, abs=0.03)
