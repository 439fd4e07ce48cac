"""Ways to fit weights on decoder rows, all with one signature.

Every solver sees the same `Problem` and returns a `Solution`. With a metric M the problem's rows
and targets are already multiplied by its square root, so that plain Euclidean solvers minimise
(t - wD) M (t - wD)^T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from saesteer.methods.features.codes import PairCodes
from saesteer.methods.settings import RegressionSettings
from saesteer.utils.errors import ConfigError, DataError, MismatchError

# Decoders are stored in half precision: singular values below this share of the largest are
# rounding, and fitting them would give near-duplicate rows huge weights of opposite sign.
RANK_TOLERANCE = 1e-6

# Where BIC cannot be used, the lasso's penalty is this share of the one that zeroes all weights.
DEFAULT_LASSO_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Problem:
    """One regression of targets `[pair, d]` on decoder rows `[feature, d]`.

    `codes` holds the activations of just these features, `signs` the sign that each weight must
    have (0: no weight).
    """

    rows: Float[np.ndarray, "feature d"]
    targets: Float[np.ndarray, "pair d"]
    settings: RegressionSettings
    codes: PairCodes | None = None
    signs: Float[np.ndarray, " feature"] | None = None

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The mean target, which every pooled squared-error fit with common weights fits."""
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


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights in the problem's basis, each pair's own where there are any, and plain facts."""

    weights: Float[np.ndarray, " feature"]
    per_pair: Float[np.ndarray, "pair feature"] | None = None
    details: Mapping[str, float] = field(default_factory=dict)


Solver = Callable[[Problem], Solution]


def _least_squares(problem: Problem) -> Solution:
    """Ordinary least squares over all pairs with common weights, of least norm.

    The sum over pairs of |t_i - wD|^2 differs from n |mean t - wD|^2 by a constant, so this is
    the fit to the mean target.
    """
    weights, rank = _least_norm(problem.rows, problem.mean)
    return Solution(weights, details={"rank": rank})


def _least_squares_per_prompt(problem: Problem) -> Solution:
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
    details = {
        "mean_features": float(used.sum(axis=1).mean()),
        "r2_per_prompt": float(1 - (residual**2).sum() / (problem.targets**2).sum()),
    }
    return Solution(weights.mean(axis=0), per_pair=weights, details=details)


def _ridge(problem: Problem) -> Solution:
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
    return Solution(weights, details={"ridge_alpha": alpha, "penalty": penalty})


def _non_negative(problem: Problem) -> Solution:
    """Least squares on the mean target with weights of zero or more (Lawson & Hanson 1974)."""
    return Solution(_nnls(problem.rows, problem.mean))


def _sign_tied(problem: Problem) -> Solution:
    """Least squares on the mean target, each weight of its feature's own sign or zero.

    A feature more active on the positive side may only be added, one more active on the negative
    side only taken away. Solved as `_non_negative` on rows multiplied by their signs.
    """
    signs = problem.signs
    if signs is None:
        signs = np.sign(problem.needed_codes.mean_delta)
    tied = signs != 0
    weights = np.zeros(len(signs))
    if tied.any():
        weights[tied] = signs[tied] * _nnls(problem.rows[tied] * signs[tied, None], problem.mean)
    return Solution(weights, details={"n_untied": int((~tied).sum())})


def _omp(problem: Problem) -> Solution:
    """Orthogonal matching pursuit on the mean target (Pati et al. 1993), rows at unit length."""
    from sklearn.linear_model import OrthogonalMatchingPursuit

    wanted = problem.settings.n_nonzero or 32
    lengths = np.linalg.norm(problem.rows, axis=1)
    units = problem.rows / lengths[:, None]
    count = min(wanted, *problem.rows.shape)
    model = OrthogonalMatchingPursuit(n_nonzero_coefs=count, fit_intercept=False)
    with _quiet():
        model.fit(units.T, problem.mean)
    return Solution(np.ravel(model.coef_) / lengths, details={"n_nonzero_asked": wanted})


def _lasso(problem: Problem) -> Solution:
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
        with _quiet():
            path.fit(design, mean)
        share = float(path.alpha_) / largest if largest else 0.0
        return Solution(np.ravel(path.coef_), details={"lasso_alpha": share})
    share = alpha or DEFAULT_LASSO_ALPHA
    model = Lasso(alpha=share * largest, fit_intercept=False, max_iter=100_000, tol=1e-8)
    with _quiet():
        model.fit(design, mean)
    return Solution(np.ravel(model.coef_), details={"lasso_alpha": share})


def _logistic(problem: Problem) -> Solution:
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
    model.fit(standard, codes.labels)
    weights = np.ravel(model.coef_) * scale
    direction = weights @ problem.rows
    length = float(direction @ direction)
    factor = float(problem.mean @ direction) / length if length > 0 else 0.0
    details = {
        "logistic_c": strength,
        "train_accuracy": float(model.score(standard, codes.labels)),
        "scale": factor,
    }
    return Solution(weights * (abs(factor) or 1.0), details=details)


def _mean_difference(problem: Problem) -> Solution:
    """The mean difference in activation itself: the decoded mean delta of these features."""
    return Solution(problem.needed_codes.mean_delta.copy())


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
) -> tuple[Float[np.ndarray, " feature"], int]:
    weights, _, rank, _ = np.linalg.lstsq(rows.T, target, rcond=RANK_TOLERANCE)
    return weights, int(rank)


def _nnls(
    rows: Float[np.ndarray, "feature d"], target: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " feature"]:
    from scipy.optimize import nnls

    try:
        return nnls(rows.T, target, maxiter=max(1000, 30 * len(rows)))[0]
    except RuntimeError as error:
        raise DataError(
            "decoder_rows: non-negative least squares does not converge on these rows; keep "
            "fewer features or use method='ridge'."
        ) from error


def _quiet():
    """Silence scikit-learn's notices on collinear rows, which these solvers end early on."""
    import warnings

    return warnings.catch_warnings(action="ignore")
