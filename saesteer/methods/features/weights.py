"""Fit weights on the kept features' decoder rows, so that their sum approximates a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saesteer.methods.features.codes import PairCodes, directions, shaped
from saesteer.methods.features.solvers import (
    FROM_CODES,
    REGRESSIONS,
    Problem,
    RegressionSettings,
    Weights,
)
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.settings import parse_config


@dataclass(frozen=True, eq=False)
class FeatureWeights:
    """Features with weights, the direction they add up to, and how well it fits.

    With a metric M every r2 and norm is measured in it (|x|^2 = x M x^T); `cosine` never is.
    """

    indices: Int[np.ndarray, " feature"]  # in the SAE
    weights: Weights  # of decoder rows, in units of activation
    method: str
    direction_raw: Float[np.ndarray, " d_model"]  # weights @ decoder rows
    # 1 - SSE / SS over all pairs, SS being the targets' squares about zero, not about their mean.
    # A single vector cannot reach 1 unless all targets are equal: see details["r2_ceiling"].
    r2: float
    r2_mean: float  # the same for the mean target alone
    residual_norms: Float[np.ndarray, " pair"]
    cosine: float  # between direction_raw and the mean target
    # What else the method has to say: r2_ceiling (the greatest r2 of any vector), n_nonzero, and
    # the solver's own numbers.
    details: Mapping[str, float]

    @property
    def by_feature(self) -> dict[int, float]:
        """Each feature's weight, by its index in the SAE."""
        return dict(zip(self.indices.tolist(), self.weights.tolist(), strict=True))


def fit_weights(
    target: Float[np.ndarray, "pair d_model"] | Float[np.ndarray, " d_model"],
    decoder_rows: Float[np.ndarray, "feature d_model"],
    *,
    method: str = "ridge",
    indices: Int[np.ndarray, " feature"] | None = None,
    codes: PairCodes | None = None,
    signs: Float[np.ndarray, " feature"] | None = None,
    metric: Float[np.ndarray, "d_model d_model"] | None = None,
    basis: str = "decoder",
    ridge_alpha: float = 0.1,
    lasso_alpha: float | None = None,
    n_nonzero: int | None = None,
    logistic_c: float = 1.0,
) -> FeatureWeights:
    """Fit weights w so that w @ decoder_rows approximates the targets.

    Pooled methods (all but `least_squares_per_prompt`) take every pair's target as a sample of
    one weight vector. For squared error that is the fit to the mean target; r2 and the residual
    norms are still reported over all pairs.

    The target need not be a delta: with a gradient g and the Fisher matrix F of the model's
    output, `target=inverse(F) @ g, metric=F` gives the weights that gain most along g for their
    divergence.

    Args:
        target: `[pair, d_model]` deltas, or one `[d_model]` vector.
        decoder_rows: `[feature, d_model]` decoder rows of the kept features.
        method: A name in `REGRESSIONS`.
        indices: SAE index of each row; 0, 1, 2, ... when left out.
        codes: Activations of both sides, all features of the SAE. Needed by `logistic` and
            `mean_difference`, by basis "decoded", and by `sign_tied` unless `signs` is given;
            in `least_squares_per_prompt` they limit each pair to the features that differ in it.
        signs: Sign that `sign_tied` ties each weight to; that of the feature's mean difference in
            `codes` when left out.
        metric: Symmetric positive semi-definite matrix to measure errors in; Euclidean when left
            out.
        basis: Regressors: "decoder" rows, or "decoded" activations (decoder rows times the
            feature's mean absolute delta), which matters to methods with a penalty. `weights`
            always belong to decoder rows. `logistic` and `mean_difference` have no regressors
            and ignore it.
        ridge_alpha: Penalty of `ridge` in units of the Gram matrix' mean diagonal.
        lasso_alpha: Penalty of `lasso` as a share of the one that zeroes all weights; chosen by
            BIC when left out.
        n_nonzero: How many features `omp` picks; at most 32 when left out.
        logistic_c: Inverse penalty of `logistic`.

    Raises:
        ConfigError: The method or basis is unknown, or something it needs is missing.
        DataError: A target or row is not finite, a row is zero, the mean target is zero, or the
            fit leaves every weight at zero.
        MismatchError: Widths or numbers of features do not agree.

    Example:
        >>> rows = sae.decoder[[3, 5]].numpy()
        >>> fit = ss.fit_weights(2 * rows[0] - rows[1], rows, method="least_squares")
        >>> fit.weights.round(3).tolist()
        [2.0, -1.0]
    """
    settings = parse_config(
        {
            "method": method,
            "basis": basis,
            "ridge_alpha": ridge_alpha,
            "lasso_alpha": lasso_alpha,
            "n_nonzero": n_nonzero,
            "logistic_c": logistic_c,
        },
        kind=RegressionSettings,
        place="fit_weights",
    )
    targets = shaped(np.atleast_2d(target), "target", (None, None), "give one row per pair")
    order = np.arange(len(decoder_rows)) if indices is None else np.asarray(indices)
    rows = directions(decoder_rows, order, targets.shape[1])
    mean = targets.mean(axis=0)
    if np.linalg.norm(mean) <= 1e-9 * np.linalg.norm(targets, axis=1).max():
        raise DataError(
            "target: the mean over the pairs is zero, so the two sides do not differ on average; "
            "check that the texts differ and that positive and negative are not mixed up."
        )
    root = None if metric is None else _metric_root(metric, targets.shape[1])
    problem = Problem(
        rows=rows if root is None else rows @ root,
        targets=targets if root is None else targets @ root,
        settings=settings,
        codes=None if codes is None else codes.columns(order),
        signs=None
        if signs is None
        else np.sign(shaped(signs, "signs", order.shape, "give one a row")),
    )
    weights, details = _solved(problem)
    direction = weights @ rows
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length) or length == 0:
        raise DataError(
            f"method: '{method}' gives no direction on these {len(weights)} features, its "
            "weights are all zero, cancel or are not finite; keep more features, lower the "
            "penalty or use method='ridge'."
        )
    # Measured where the fit was made, which is in the metric if there is one.
    fitted = weights @ problem.rows
    residual_norms = np.linalg.norm(problem.targets - fitted, axis=1)
    total, mean_total = float((problem.targets**2).sum()), float((problem.mean**2).sum())
    missed = float(((problem.mean - fitted) ** 2).sum())
    return FeatureWeights(
        indices=order,
        weights=weights,
        method=method,
        direction_raw=direction,
        r2=1 - float((residual_norms**2).sum()) / total if total else 0.0,
        r2_mean=1 - missed / mean_total if mean_total else 0.0,
        residual_norms=residual_norms,
        cosine=float(direction @ mean) / (length * float(np.linalg.norm(mean))),
        details={
            "n_nonzero": int((weights != 0).sum()),
            "r2_ceiling": len(targets) * mean_total / total if total else 0.0,
            **details,
        },
    )


def _solved(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Solve on the regressors that are not zero; the others get no weight."""
    settings, scale = problem.settings, np.ones(len(problem.rows))
    if settings.basis == "decoded" and settings.method not in FROM_CODES:
        if problem.codes is None:
            raise ConfigError(
                "codes: basis 'decoded' scales decoder rows by the features' activations; pass "
                "codes=, or use basis='decoder'."
            )
        scale = problem.codes.mean_size
    regressors = problem.rows * scale[:, None]
    live = np.flatnonzero(regressors.any(axis=1))
    if live.size == 0:
        raise DataError(
            "decoder_rows: every regressor is zero in this basis and metric, so there is nothing "
            "to fit with; use basis='decoder' or another metric."
        )
    part = replace(
        problem,
        rows=regressors[live],
        codes=None if problem.codes is None else problem.codes.columns(live),
        signs=None if problem.signs is None else problem.signs[live],
    )
    weights = np.zeros(len(scale))
    found, details = REGRESSIONS[settings.method](part)
    weights[live] = found * scale[live]
    return weights, details


def _metric_root(metric: Any, d_model: int) -> Float[np.ndarray, "d_model d_model"]:
    """R with R R^T = metric, so that |x R|^2 = x metric x^T."""
    advice = "compute it at the target's site"
    matrix = shaped(metric, "metric", (d_model, d_model), advice)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    size = float(np.abs(values).max())
    if np.abs(matrix - matrix.T).max() > 1e-6 * size or values.min() < -1e-6 * size or not size:
        raise DataError(
            "metric: it is not symmetric and positive semi-definite, so it measures no error; "
            "use a Fisher or covariance matrix, with a ridge on its diagonal."
        )
    return vectors * np.sqrt(np.clip(values, 0, None))
