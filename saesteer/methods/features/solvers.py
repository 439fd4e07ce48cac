"""Ways to fit weights on decoder rows, all with one signature.

Every solver sees the same `Problem` and returns a `Solution`. With a metric M the problem's rows
and target are already multiplied by its square root, so that plain Euclidean solvers minimise
(t - wD) M (t - wD)^T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from saesteer.methods.features.codes import PairCodes
from saesteer.utils.errors import ConfigError, DataError, MismatchError

# Decoders are stored in half precision: singular values below this share of the largest are
# rounding, and fitting them would give near-duplicate rows huge weights of opposite sign.
RANK_TOLERANCE = 1e-6

# Where BIC cannot be used, the lasso's penalty is this share of the one that zeroes all weights.
DEFAULT_LASSO_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Problem:
    """One regression of a target on decoder rows.

    Attributes:
        rows: `[feature, d]` regressors: decoder rows in the chosen basis (and metric).
        targets: `[pair, d]` what is to be approximated (in the metric).
        codes: Activations of just these features, in the rows' order, or None.
        signs: `[feature]` the sign that each weight must have (0: no weight), or None.
        ridge_alpha: Penalty in units of the Gram matrix' mean diagonal.
        lasso_alpha: Penalty as a share of the smallest that zeroes all weights; None for BIC.
        n_nonzero: How many features orthogonal matching pursuit picks; None for at most 32.
        logistic_c: Inverse penalty of logistic regression on standardised activations.
    """

    rows: Float[np.ndarray, "feature d"]
    targets: Float[np.ndarray, "pair d"]
    codes: PairCodes | None = None
    signs: Float[np.ndarray, " feature"] | None = None
    ridge_alpha: float = 0.1
    lasso_alpha: float | None = None
    n_nonzero: int | None = None
    logistic_c: float = 1.0

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The mean target, which every pooled squared-error fit with common weights fits."""
        return self.targets.mean(axis=0)

    def needed_codes(self, method: str) -> PairCodes:
        """Return the codes.

        Raises:
            ConfigError: There are none.
        """
        if self.codes is None:
            raise ConfigError(
                f"codes: method '{method}' needs the features' activations; pass codes=, or use "
                "method='ridge'."
            )
        return self.codes


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights in the problem's basis, each pair's own where there are any, and plain facts."""

    weights: Float[np.ndarray, " feature"]
    per_pair: Float[np.ndarray, "pair feature"] | None = None
    details: Mapping[str, float] = field(default_factory=dict)


Solver = Callable[[Problem], Solution]


def least_squares(problem: Problem) -> Solution:
    """Ordinary least squares over all pairs with common weights, of least norm.

    The sum over pairs of |t_i - wD|^2 differs from n |mean t - wD|^2 by a constant, so this is
    the fit to the mean target.

    Args:
        problem: What to fit.

    Returns:
        Weights; details: rank.
    """
    weights, rank = _least_norm(problem.rows, problem.mean)
    return Solution(weights, details={"rank": rank})


def least_squares_per_prompt(problem: Problem) -> Solution:
    """Least squares for each pair by itself, of least norm, then the mean of the weights.

    With codes a pair uses only the features whose activation differs between its two sides, and
    the others weigh zero in it, as in the earlier work. Without codes every pair uses every
    feature, and since the solution is linear in the target the mean equals `least_squares`.

    Args:
        problem: What to fit.

    Returns:
        Mean weights and each pair's own; details: mean_features, r2_per_prompt.

    Raises:
        MismatchError: The codes are not of the same pairs as the targets.
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


def ridge(problem: Problem) -> Solution:
    """Ridge regression on the mean target: (G + a m I) w = D t with G = D D^T, m = mean G_jj.

    Args:
        problem: What to fit, with `ridge_alpha` a.

    Returns:
        Weights; details: ridge_alpha, penalty (a m).

    Raises:
        ConfigError: `ridge_alpha` is not above 0.
    """
    if not 0 < problem.ridge_alpha < np.inf:
        raise ConfigError(
            f"ridge_alpha: {problem.ridge_alpha:g} is no penalty; give a number above 0, or use "
            "method='least_squares' for none."
        )
    gram = problem.rows @ problem.rows.T
    penalty = problem.ridge_alpha * float(np.diag(gram).mean())
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), problem.rows @ problem.mean)
    return Solution(weights, details={"ridge_alpha": problem.ridge_alpha, "penalty": penalty})


def non_negative(problem: Problem) -> Solution:
    """Least squares on the mean target with weights of zero or more (Lawson & Hanson 1974).

    Args:
        problem: What to fit.

    Returns:
        Weights.

    Raises:
        DataError: The solver does not converge.
    """
    return Solution(_nnls(problem.rows, problem.mean))


def sign_tied(problem: Problem) -> Solution:
    """Least squares on the mean target, each weight of its feature's own sign or zero.

    A feature more active on the positive side may only be added, one more active on the negative
    side only taken away. Solved as `non_negative` on rows multiplied by their signs.

    Args:
        problem: What to fit, with `signs`.

    Returns:
        Weights; details: n_untied (features without a sign, which get no weight).

    Raises:
        ConfigError: There are neither signs nor codes to take them from.
        DataError: The solver does not converge.
    """
    signs = problem.signs
    if signs is None:
        signs = np.sign(problem.needed_codes("sign_tied").mean_delta)
    tied = signs != 0
    weights = np.zeros(len(signs))
    if tied.any():
        weights[tied] = signs[tied] * _nnls(problem.rows[tied] * signs[tied, None], problem.mean)
    return Solution(weights, details={"n_untied": int((~tied).sum())})


def omp(problem: Problem) -> Solution:
    """Orthogonal matching pursuit on the mean target (Pati et al. 1993), rows at unit length.

    Args:
        problem: What to fit, with `n_nonzero`.

    Returns:
        Weights, of which at most `n_nonzero` are not zero.

    Raises:
        ConfigError: `n_nonzero` is below 1.
    """
    from sklearn.linear_model import OrthogonalMatchingPursuit

    wanted = 32 if problem.n_nonzero is None else problem.n_nonzero
    if wanted < 1:
        raise ConfigError(f"n_nonzero: {wanted} features cannot be picked; give 1 or more.")
    lengths = np.linalg.norm(problem.rows, axis=1)
    units = problem.rows / lengths[:, None]
    count = min(wanted, *problem.rows.shape)
    model = OrthogonalMatchingPursuit(n_nonzero_coefs=count, fit_intercept=False)
    with _quiet():
        model.fit(units.T, problem.mean)
    return Solution(np.ravel(model.coef_) / lengths, details={"n_nonzero_asked": wanted})


def lasso(problem: Problem) -> Solution:
    """Least squares on the mean target with an L1 penalty on the weights (in the chosen basis).

    Without `lasso_alpha` the penalty is the one of least BIC along the LARS path, with as many
    degrees of freedom as non-zero weights (Zou, Hastie & Tibshirani 2007); where there are as
    many features as dimensions BIC is not defined, and 0.05 of the largest penalty is taken.

    Args:
        problem: What to fit, with `lasso_alpha`.

    Returns:
        Weights; details: lasso_alpha, the penalty's share of the one that zeroes all weights.

    Raises:
        ConfigError: `lasso_alpha` is not between 0 and 1.
    """
    from sklearn.linear_model import Lasso, LassoLarsIC

    if problem.lasso_alpha is not None and not 0 < problem.lasso_alpha < 1:
        raise ConfigError(
            f"lasso_alpha: {problem.lasso_alpha:g} is no share of the largest penalty; give a "
            "number between 0 and 1, or leave it out for BIC."
        )
    design, mean = problem.rows.T, problem.mean
    n, k = design.shape
    largest = float(np.abs(design.T @ mean).max()) / n
    if problem.lasso_alpha is None and k < n:
        fitted = _least_norm(problem.rows, mean)[0] @ problem.rows
        noise = float(((mean - fitted) ** 2).sum()) / (n - k)
        # An exact fit leaves no noise, and BIC divides by it.
        noise = max(noise, 1e-12 * float((mean**2).mean()))
        path = LassoLarsIC(criterion="bic", fit_intercept=False, noise_variance=noise)
        with _quiet():
            path.fit(design, mean)
        share = float(path.alpha_) / largest if largest else 0.0
        return Solution(np.ravel(path.coef_), details={"lasso_alpha": share})
    share = problem.lasso_alpha or DEFAULT_LASSO_ALPHA
    model = Lasso(alpha=share * largest, fit_intercept=False, max_iter=100_000, tol=1e-8)
    with _quiet():
        model.fit(design, mean)
    return Solution(np.ravel(model.coef_), details={"lasso_alpha": share})


def logistic(problem: Problem) -> Solution:
    """Logistic regression of the side on the features' activations.

    Fitted on standardised activations, the coefficients are divided by the standard deviations,
    so that weight j is log-odds per unit of activation j. The direction sum_j w_j d_j is then
    scaled to the length that fits the mean target best, c = <t, v> / <v, v>, by |c|: the
    classifier, not the target, says which way is positive.

    Args:
        problem: What to fit, with `codes` and `logistic_c`; rows must be in decoder units.

    Returns:
        Weights; details: logistic_c, train_accuracy, scale (c, negative where the direction
        points against the mean target).

    Raises:
        ConfigError: There are no codes, or `logistic_c` is not above 0.
    """
    from sklearn.linear_model import LogisticRegression

    codes = problem.needed_codes("logistic")
    if not 0 < problem.logistic_c < np.inf:
        raise ConfigError(f"logistic_c: {problem.logistic_c:g} is not above 0; give e.g. 1.0.")
    sides = codes.stacked()
    deviation = sides.std(axis=0)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    standard = (sides - sides.mean(axis=0)) * scale
    model = LogisticRegression(C=problem.logistic_c, max_iter=10_000, tol=1e-8)
    model.fit(standard, codes.labels)
    weights = np.ravel(model.coef_) * scale
    direction = weights @ problem.rows
    length = float(direction @ direction)
    factor = float(problem.mean @ direction) / length if length > 0 else 0.0
    details = {
        "logistic_c": problem.logistic_c,
        "train_accuracy": float(model.score(standard, codes.labels)),
        "scale": factor,
    }
    return Solution(weights * (abs(factor) or 1.0), details=details)


def mean_difference(problem: Problem) -> Solution:
    """The mean difference in activation itself: the decoded mean delta of these features.

    Args:
        problem: Holds `codes`; rows must be in decoder units.

    Returns:
        Weights.

    Raises:
        ConfigError: There are no codes.
    """
    return Solution(problem.needed_codes("mean_difference").mean_delta.copy())


REGRESSIONS: Mapping[str, Solver] = MappingProxyType(
    {
        "least_squares_per_prompt": least_squares_per_prompt,
        "least_squares": least_squares,
        "ridge": ridge,
        "non_negative": non_negative,
        "sign_tied": sign_tied,
        "omp": omp,
        "lasso": lasso,
        "logistic": logistic,
        "mean_difference": mean_difference,
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
