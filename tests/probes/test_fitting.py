"""Fitting against scikit-learn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from saesteer.probes.fitting import FitSettings, fit_probe, folds
from saesteer.utils.errors import DataError

SETTINGS = FitSettings(c=[0.001, 0.03, 1.0], tol=1e-6, max_iter=2000)


def made(n_classes: int = 3, n: int = 400, d: int = 12, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, d))
    x = 3 * rng.normal(size=(n, d)) * np.linspace(0.1, 10, d) + centres[labels] * 4 + 7
    return x.astype(np.float32), labels, np.arange(n) // 4


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_is_scikit_learns_on_standardised_inputs(n_classes):
    x, labels, groups = made(n_classes)
    fitted = fit_probe(x, labels, groups, SETTINGS)
    by_hand = make_pipeline(
        StandardScaler(), LogisticRegression(C=fitted.c, tol=1e-8, max_iter=5000)
    )
    by_hand.fit(x.astype(np.float64), labels)
    assert fitted.converged
    assert fitted.probabilities(x) == pytest.approx(by_hand.predict_proba(x), abs=2e-3)
    assert fitted.weight.shape == ((1 if n_classes == 2 else 3), 12)


def test_the_strength_is_the_one_that_cross_validation_by_hand_likes_best():
    x, labels, groups = made()
    fitted = fit_probe(x, labels, groups, SETTINGS, seed=3)
    by_hand = {}
    for c in SETTINGS.c:
        losses = []
        for inner, outer in folds(labels, groups, 3, 3):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
            model.fit(x[inner], labels[inner])
            losses.append(log_loss(labels[outer], model.predict_proba(x[outer])))
        by_hand[c] = np.mean(losses)
    assert fitted.c == min(by_hand, key=lambda c: by_hand[c])
    assert fitted.cv_loss == pytest.approx(by_hand, rel=1e-3)


def test_groups_never_straddle_a_fold_and_a_constant_dimension_does_no_harm():
    x, labels, groups = made()
    for inner, outer in folds(labels, groups, 3, 0):
        assert not set(groups[inner]) & set(groups[outer])
        assert len(inner) + len(outer) == len(labels)
    x[:, 3] = 5.0
    assert np.isfinite(fit_probe(x, labels, groups, SETTINGS).weight).all()


def test_balanced_weights_help_the_rare_class():
    x, labels, groups = made(2, n=600)
    rare = np.flatnonzero((labels == 0) | (np.arange(600) % 20 == 1))
    x, labels, groups = x[rare], labels[rare], groups[rare]
    settings = SETTINGS.model_copy(update={"class_weight": "balanced"})
    found = [fit_probe(x, labels, groups, s).probabilities(x)[:, 1] for s in (SETTINGS, settings)]
    assert found[1][labels == 1].mean() > found[0][labels == 1].mean()


def test_a_given_strength_is_used_without_a_search():
    fitted = fit_probe(*made(), SETTINGS, c=0.5)
    assert (fitted.c, fitted.cv_loss) == (0.5, {})


def test_what_cannot_be_fitted_is_refused():
    x, labels, groups = made()
    with pytest.raises(DataError, match="all training texts have one class"):
        fit_probe(x, labels * 0, groups, SETTINGS)
    with pytest.raises(DataError, match="a class has 2 groups of texts"):
        fit_probe(x, labels, np.arange(len(x)) % 2, SETTINGS)
    x[5, 2] = np.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_probe(x, labels, groups, SETTINGS)
