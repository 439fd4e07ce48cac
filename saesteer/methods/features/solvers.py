"""Ways to fit weights on decoder rows, all with one signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, field_validator

from saesteer.methods.features.codes import PairCodes
from saesteer.methods.features.select import known_name
from saesteer.utils.errors import ConfigError, DataError, MismatchError
from saesteer.utils.settings import Settings

# Decoders are stored in half precision: singular values below this share of the largest are
# rounding, and fitting them would give near-duplicate rows huge weights of opposite sign.
RANK_TOLERANCE = 1e-6
# Where BIC cannot be used, the lasso's penalty is this share of the one that zeroes all weights.
DEFAULT_LASSO_ALPHA = 0.05

Weights = Float[np.ndarray, " feature"]


class RegressionSettings(Settings):
    """How weights are fitted; see `saesteer.fit_weights`."""

    method: str = "sign_tied"
    basis: Literal["decoder", "decoded"] = "decoder"
    ridge_alpha: float = Field(default=0.1, ge=0)
    lasso_alpha: float | None = Field(default=None, gt=0, lt=1)
    n_nonzero: int | None = Field(default=None, ge=1)
    logistic_c: float = Field(default=1.0, gt=0)

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, REGRESSIONS)


@dataclass(frozen=True, eq=False)
class Problem:
    """One regression; in a metric, rows and targets are multiplied by its square root.

    So plain Euclidean solvers minimise (t - wD) M (t - wD)^T.
    """

    rows: Float[np.ndarray, "feature d"]
    targets: Float[np.ndarray, "pair d"]
    settings: RegressionSettings
    codes: PairCodes | None  # of just these features
    signs: Weights | None  # that each weight must have; 0: no weight

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The mean target, which every pooled squared-error fit with common weights fits.

        The sum over pairs of |t_i - wD|^2 differs from n |mean t - wD|^2 by a constant.
        """
        return self.targets.mean(axis=0)

    @property
    def needed_codes(self) -> PairCodes:
        """The codes, for solvers that cannot do without."""
        if self.codes is None:
            raise ConfigError(
                f"codes: method '{self.settings.method}' needs the features' activations; pass "
                "codes=, or use method='ridge'."
            )
        return self.codes


# From a problem to its weights and plain facts about them.
Solver = Callable[[Problem], tuple[Weights, dict[str, float]]]


def _least_squares(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Ordinary least squares over all pairs with common weights, of least norm."""
    weights, rank = _least_norm(problem.rows, problem.mean)
    return weights, {"rank": rank}


def _least_squares_per_prompt(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Least squares for each pair by itself, of least norm, then the mean of the weights.

    With codes a pair uses only the features whose activation differs between its two sides, and
    the others weigh zero in it, as in the earlier work. Without codes every pair uses every
    feature, and since the solution is linear in the target the mean equals `_least_squares`.
    """
    n_pairs, n_features = len(problem.targets), len(problem.rows)
    used = np.ones((n_pairs, n_features), dtype=bool)
    if problem.codes is not None:
        if problem.codes.n_pairs != n_pairs:
            raise MismatchError(
                f"codes: {problem.codes.n_pairs} pairs of activations do not go with {n_pairs} "
                "targets; give both for the same pairs, or use a pooled method."
            )
        used = problem.codes.delta.toarray() != 0
    # Rotating into the span of the rows first makes each pair's fit small, and changes nothing.
    basis, triangle = np.linalg.qr(problem.rows.T)
    projected = problem.targets @ basis
    weights = np.zeros((n_pairs, n_features))
    for pair, features in enumerate(used):
        if features.any():
            weights[pair, features] = _least_norm(triangle[:, features].T, projected[pair])[0]
    residual = problem.targets - weights @ problem.rows
    return weights.mean(axis=0), {
        "mean_features": float(used.sum(axis=1).mean()),
        "r2_per_prompt": float(1 - (residual**2).sum() / (problem.targets**2).sum()),
    }


def _ridge(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Ridge regression on the mean target: (G + a m I) w = D t with G = D D^T, m = mean G_jj."""
    alpha = problem.settings.ridge_alpha
    if not alpha > 0:
        raise ConfigError(
            f"ridge_alpha: {alpha:g} is no penalty; give a number above 0, or use "
            "method='least_squares' for none."
        )
    gram = problem.rows @ problem.rows.T
    penalty = alpha * float(np.diag(gram).mean())
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), problem.rows @ problem.mean)
    return weights, {"ridge_alpha": alpha, "penalty": penalty}


def _non_negative(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Least squares on the mean target with weights of zero or more (Lawson & Hanson 1974)."""
    from scipy.optimize import nnls

    rows = problem.rows
    try:
        return nnls(rows.T, problem.mean, maxiter=max(1000, 30 * len(rows)))[0], {}
    except RuntimeError as error:
        raise DataError(
            "decoder_rows: non-negative least squares does not converge on these rows; keep "
            "fewer features or use method='ridge'."
        ) from error


def _sign_tied(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Least squares on the mean target, each weight of its feature's own sign or zero.

    A feature more active on the positive side may only be added, one more active on the negative
    side only taken away. Solved as `_non_negative` on rows multiplied by their signs.
    """
    signs = problem.signs
    if signs is None:
        signs = np.sign(problem.needed_codes.mean_delta)
    tied = np.flatnonzero(signs)
    weights = np.zeros(len(signs))
    if tied.size:
        flipped = replace(problem, rows=problem.rows[tied] * signs[tied, None])
        weights[tied] = signs[tied] * _non_negative(flipped)[0]
    return weights, {"n_untied": len(signs) - len(tied)}


def _omp(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Orthogonal matching pursuit on the mean target (Pati et al. 1993), rows at unit length."""
    from sklearn.linear_model import OrthogonalMatchingPursuit

    wanted = problem.settings.n_nonzero or 32
    lengths = np.linalg.norm(problem.rows, axis=1)
    count = min(wanted, *problem.rows.shape)
    model = OrthogonalMatchingPursuit(n_nonzero_coefs=count, fit_intercept=False)
    return _fitted(model, (problem.rows / lengths[:, None]).T, problem.mean) / lengths, {
        "n_nonzero_asked": wanted
    }


def _lasso(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Least squares on the mean target with an L1 penalty on the weights (in the chosen basis).

    Without `lasso_alpha` the penalty is the one of least BIC along the LARS path, with as many
    degrees of freedom as non-zero weights (Zou, Hastie & Tibshirani 2007); where there are as
    many features as dimensions BIC is not defined, and 0.05 of the largest penalty is taken.
    """
    from sklearn.linear_model import Lasso, LassoLarsIC

    alpha = problem.settings.lasso_alpha
    design, mean = problem.rows.T, problem.mean
    n, k = design.shape
    largest = float(np.abs(design.T @ mean).max()) / n
    if alpha is None and k < n:
        fitted = _least_norm(problem.rows, mean)[0] @ problem.rows
        noise = float(((mean - fitted) ** 2).sum()) / (n - k)
        # An exact fit leaves no noise, and BIC divides by it.
        noise = max(noise, 1e-12 * float((mean**2).mean()))
        path = LassoLarsIC(criterion="bic", fit_intercept=False, noise_variance=noise)
        weights = _fitted(path, design, mean)
        return weights, {"lasso_alpha": float(path.alpha_) / largest if largest else 0.0}
    share = alpha or DEFAULT_LASSO_ALPHA
    model = Lasso(alpha=share * largest, fit_intercept=False, max_iter=100_000, tol=1e-8)
    return _fitted(model, design, mean), {"lasso_alpha": share}


def _logistic(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """Logistic regression of the side on the features' activations.

    Fitted on standardised activations, the coefficients are divided by the standard deviations,
    so that weight j is log-odds per unit of activation j. The direction sum_j w_j d_j is then
    scaled to the length that fits the mean target best, c = <t, v> / <v, v>, by |c|: the
    classifier, not the target, says which way is positive, and `scale` is c with its sign.
    """
    from sklearn.linear_model import LogisticRegression

    codes, strength = problem.needed_codes, problem.settings.logistic_c
    sides = codes.stacked()
    deviation = sides.std(axis=0)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    standard = (sides - sides.mean(axis=0)) * scale
    model = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8)
    weights = _fitted(model, standard, codes.labels) * scale
    direction = weights @ problem.rows
    length = float(direction @ direction)
    factor = float(problem.mean @ direction) / length if length > 0 else 0.0
    return weights * (abs(factor) or 1.0), {
        "logistic_c": strength,
        "train_accuracy": float(model.score(standard, codes.labels)),
        "scale": factor,
    }


def _mean_difference(problem: Problem) -> tuple[Weights, dict[str, float]]:
    """The mean difference in activation itself: the decoded mean delta of these features."""
    return problem.needed_codes.mean_delta.copy(), {}


REGRESSIONS: Mapping[str, Solver] = MappingProxyType(
    {
        "least_squares_per_prompt": _least_squares_per_prompt,
        "least_squares": _least_squares,
        "ridge": _ridge,
        "non_negative": _non_negative,
        "sign_tied": _sign_tied,
        "omp": _omp,
        "lasso": _lasso,
        "logistic": _logistic,
        "mean_difference": _mean_difference,
    }
)
# These take their weights from the activations, so the basis of the regressors is not theirs.
FROM_CODES = frozenset({"logistic", "mean_difference"})


def _least_norm(
    rows: Float[np.ndarray, "feature d"], target: Float[np.ndarray, " d"]
) -> tuple[Weights, int]:
    weights, _, rank, _ = np.linalg.lstsq(rows.T, target, rcond=RANK_TOLERANCE)
    return weights, int(rank)


def _fitted(model: Any, design: np.ndarray, target: np.ndarray) -> Weights:
    """Return a fit's coefficients, without notices on collinear rows, where it ends early."""
    import warnings

    with warnings.catch_warnings(action="ignore"):
        return np.ravel(model.fit(design, target).coef_)
