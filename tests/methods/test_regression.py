from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso, LogisticRegression, Ridge, orthogonal_mp

from saesteer.methods.features import REGRESSIONS, PairCodes, fit_weights
from saesteer.utils.errors import ConfigError, DataError, MismatchError

N, K, D = 30, 6, 20


@dataclass(frozen=True)
class Task:
    """Deltas that are known weights on known rows, plus noise."""

    codes: PairCodes
    rows: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    deltas: np.ndarray


@pytest.fixture
def task() -> Task:
    rng = np.random.default_rng(5)
    weights = np.array([2.0, -1.5, 1.0, 0.5, -0.5, 0.0])
    rows = rng.standard_normal((K, D))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    indices = np.array([9, 2, 5, 7, 1, 4])
    code_delta = weights + 0.5 * rng.standard_normal((N, K)) * (weights != 0)
    base = 3 + rng.random((N, K))
    positive, negative = np.zeros((N, 12)), np.zeros((N, 12))
    positive[:, indices], negative[:, indices] = base + code_delta, base
    deltas = code_delta @ rows + 0.02 * rng.standard_normal((N, D))
    return Task(PairCodes(positive, negative), rows, indices, weights, deltas)


def fit(task: Task, method: str, **settings):
    settings = {"indices": task.indices, "codes": task.codes, **settings}
    return fit_weights(task.deltas, task.rows, method=method, **settings)


@pytest.mark.parametrize("method", list(REGRESSIONS))
def test_planted_weights_are_recovered_and_the_reported_fit_is_the_directions(task, method: str):
    if method not in ("non_negative", "logistic"):
        found = fit(task, method, basis="decoded", ridge_alpha=1e-3)
        np.testing.assert_allclose(found.weights, task.weights, atol=0.25)
        assert found.cosine > 0.99
        assert found.r2_mean > 0.97
    found = fit(task, method)
    np.testing.assert_allclose(found.direction_raw, found.weights @ task.rows, atol=1e-12)
    residual = task.deltas - found.direction_raw
    np.testing.assert_allclose(found.residual_norms, np.linalg.norm(residual, axis=1))
    assert found.r2 == pytest.approx(1 - (residual**2).sum() / (task.deltas**2).sum())
    mean = task.deltas.mean(axis=0)
    missed = ((mean - found.direction_raw) ** 2).sum()
    assert found.r2_mean == pytest.approx(1 - missed / (mean @ mean))
    assert found.cosine == pytest.approx(
        mean @ found.direction_raw / np.linalg.norm(mean) / np.linalg.norm(found.direction_raw)
    )
    assert found.r2 <= found.details["r2_ceiling"] + 1e-12
    np.testing.assert_array_equal(found.indices, task.indices)
    assert all(np.isscalar(value) for value in found.details.values())
    # More features than dimensions and duplicate rows are no trouble.
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((40, 10))
    rows[20:] = rows[:20]
    delta = rng.standard_normal((12, 40)) + 1
    codes = PairCodes(delta * (delta > 0), -delta * (delta < 0))
    found = fit_weights(delta @ rows, rows, method=method, codes=codes)
    assert np.isfinite(found.weights).all()
    assert np.abs(found.weights).max() < 100
    assert found.cosine > 0.5


def test_weights_are_those_of_numpy_scipy_and_scikit_learn(task):
    mean, lengths = task.deltas.mean(axis=0), np.linspace(0.5, 3, K)
    unit, rows = task.rows, task.rows * lengths[:, None]
    signs = np.array([1, -1, -1, 1, -1, 1])
    pooled = np.linalg.lstsq(np.tile(unit.T, (N, 1)), task.deltas.ravel(), rcond=None)[0]
    # Penalties are shares: of a row's mean square, and of the largest that keeps anything.
    ridge = Ridge(alpha=0.3 * (rows**2).sum(axis=1).mean(), fit_intercept=False).fit(rows.T, mean)
    largest = np.abs(unit @ mean).max() / D
    lasso = Lasso(alpha=0.2 * largest, fit_intercept=False, tol=1e-10).fit(unit.T, mean)
    pursued = orthogonal_mp(unit.T, mean, n_nonzero_coefs=2) / lengths
    tied = signs * nnls((unit * signs[:, None]).T, mean)[0]
    cases: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray, float]] = {
        "least_squares": (unit, {}, pooled, 1e-10),
        "ridge": (rows, {"ridge_alpha": 0.3}, ridge.coef_, 1e-10),
        "lasso": (unit, {"lasso_alpha": 0.2}, lasso.coef_, 1e-5),
        "omp": (rows, {"n_nonzero": 2}, pursued, 1e-10),
        "non_negative": (unit, {}, nnls(unit.T, mean)[0], 1e-10),
        "sign_tied": (unit, {"signs": signs}, tied, 1e-10),
    }
    for method, (design, settings, wanted, tolerance) in cases.items():
        found = fit_weights(task.deltas, design, method=method, **settings)
        np.testing.assert_allclose(found.weights, wanted, atol=tolerance, err_msg=method)
    assert np.count_nonzero(pursued) == 2 and tied[2] == 0


def test_without_signs_they_are_the_codes_own_and_what_has_none_is_left_out(task):
    tied = fit(task, "sign_tied")
    own = np.sign(task.codes.mean_delta[task.indices])
    assert (tied.weights * own >= 0).all()
    # The last feature's activation is the same on both sides of every pair.
    assert tied.weights[-1] == 0
    assert tied.details["n_untied"] == 1


def test_least_squares_per_prompt_equals_numpy_pair_by_pair_on_each_pair_s_own_features(task):
    positive = task.codes.positive.toarray()
    negative = task.codes.negative.toarray()
    positive[::2, 9] = negative[::2, 9]
    codes = PairCodes(positive, negative)
    expected = np.zeros((N, K))
    for pair in range(N):
        used = (positive - negative)[pair, task.indices] != 0
        expected[pair, used] = np.linalg.lstsq(task.rows[used].T, task.deltas[pair], rcond=None)[0]
    found = fit(task, "least_squares_per_prompt", codes=codes)
    np.testing.assert_allclose(found.weights, expected.mean(axis=0), atol=1e-9)
    assert found.details["mean_features"] == pytest.approx(4.5)
    residual = task.deltas - expected @ task.rows
    assert found.details["r2_per_prompt"] == pytest.approx(
        1 - (residual**2).sum() / (task.deltas**2).sum()
    )


def test_lasso_chooses_its_penalty_by_bic_and_drops_rows_that_play_no_part(task):
    rng = np.random.default_rng(8)
    extra = rng.standard_normal((8, D))
    extra /= np.linalg.norm(extra, axis=1, keepdims=True)
    found = fit_weights(task.deltas, np.vstack([task.rows, extra]), method="lasso")
    assert 0 < found.details["lasso_alpha"] < 0.2
    assert found.details["n_nonzero"] < 14
    assert set(np.flatnonzero(np.abs(found.weights) > 0.3)) == {0, 1, 2, 3, 4}


def test_logistic_weights_classify_as_sklearn_does_on_standardised_activations(task):
    sides = task.codes.stacked(task.indices)
    standard = (sides - sides.mean(0)) / sides.std(0)
    model = LogisticRegression(C=0.5, max_iter=10_000, tol=1e-8).fit(standard, task.codes.labels)
    coefficients = model.coef_[0] / sides.std(0)
    found = fit(task, "logistic", logistic_c=0.5)
    np.testing.assert_allclose(
        found.weights / np.linalg.norm(found.weights),
        coefficients / np.linalg.norm(coefficients),
        atol=1e-6,
    )
    assert found.details["train_accuracy"] == model.score(standard, task.codes.labels)

    # It says which way is positive even against the target.
    found = fit(task, "logistic")
    against = fit_weights(
        -task.deltas, task.rows, method="logistic", indices=task.indices, codes=task.codes
    )
    np.testing.assert_allclose(against.weights, found.weights)
    assert against.details["scale"] < 0


def test_the_decoded_basis_penalises_a_feature_less_the_more_it_is_active(task):
    plain = fit(task, "ridge", ridge_alpha=1.0)
    decoded = fit(task, "ridge", ridge_alpha=1.0, basis="decoded")
    scale = np.abs(task.codes.delta.toarray()).mean(axis=0)[task.indices]
    rows = task.rows * scale[:, None]
    live = scale > 0
    gram = rows[live] @ rows[live].T
    inner = np.linalg.solve(
        gram + np.diag(gram).mean() * np.eye(live.sum()), rows[live] @ task.deltas.mean(axis=0)
    )
    np.testing.assert_allclose(decoded.weights[live], scale[live] * inner, atol=1e-10)
    assert decoded.weights[-1] == 0
    assert abs(decoded.weights[0]) > abs(plain.weights[0])


def test_in_a_metric_least_squares_solves_the_normal_equations_of_that_metric(task):
    rng = np.random.default_rng(2)
    root = rng.standard_normal((D, D))
    fisher = root @ root.T / D
    gradient = task.deltas.mean(axis=0)
    target = np.linalg.solve(fisher, gradient)
    found = fit_weights(target, task.rows, method="least_squares", metric=fisher)
    expected = np.linalg.solve(task.rows @ fisher @ task.rows.T, task.rows @ gradient)
    np.testing.assert_allclose(found.weights, expected, atol=1e-7)
    error = target - found.direction_raw
    assert found.residual_norms[0] == pytest.approx(np.sqrt(error @ fisher @ error))
    assert found.r2 == pytest.approx(1 - error @ fisher @ error / (target @ fisher @ target))


def test_duplicate_rows_share_the_weight_of_least_norm(task):
    twice = np.vstack([task.rows, task.rows])
    found = fit_weights(task.deltas, twice, method="least_squares")
    single = fit(task, "least_squares").weights
    np.testing.assert_allclose(found.weights, np.tile(single / 2, 2), atol=1e-9)
    assert found.details["rank"] == K


def test_numbers_that_cannot_be_fitted_are_refused_with_their_row(task):
    deltas, rows = task.deltas.copy(), task.rows.copy()
    deltas[3, 4] = np.nan
    with pytest.raises(DataError, match=r"target: row 3 .* not all finite"):
        fit_weights(deltas, task.rows)
    rows[2] = 0
    with pytest.raises(DataError, match="decoder row of feature 5 is zero"):
        fit_weights(task.deltas, rows, indices=task.indices)
    with pytest.raises(DataError, match="symmetric and positive semi-definite"):
        fit(task, "ridge", metric=-np.eye(D))
    with pytest.raises(DataError, match="the mean over the pairs is zero"):
        fit_weights(np.vstack([task.deltas, -task.deltas]), task.rows)
    with pytest.raises(MismatchError, match=r"decoder_rows: shape \(6, 19\) is not \(6, 20\)"):
        fit_weights(task.deltas, task.rows[:, :-1])
    only = task.rows[:1]
    with pytest.raises(DataError, match="'non_negative' gives no direction"):
        fit_weights(-only, only, method="non_negative")
    with pytest.raises(ConfigError, match="codes: method 'logistic' needs"):
        fit(task, "logistic", codes=None)
