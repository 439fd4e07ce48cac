"""Logistic probe: the direction that tells the sides apart best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
WITHOUT_CHOICE = 1e-2


@dataclass(repr=False, eq=False)
class LogisticProbe(Method):
    """Logistic regression of the side on standardised pooled activations, in raw units.

    With b the weights on x' = (x - m) / s, the direction is b / s: the gradient of the probe's
    log-odds with respect to the raw activation, and not b itself, which lives among standardised
    coordinates. Its length is the mean delta's projection on it.

    Attributes:
        c: Inverse strength of the L2 penalty; where more than one, the one of least log-loss on
            held-out pairs.
        folds: Folds of that cross-validation; both sides of a pair stand in one fold.

    Example:
        >>> vector = ss.LogisticProbe(c=(0.01,)).fit(model, train, site=sae.site).vector_
        >>> vector.provenance["fit"]
        {'c': 0.01}
    """

    _name = "logistic_probe"
    c: tuple[float, ...] = STRENGTHS
    folds: int = 5

    def check(self) -> None:
        """Check the settings."""
        if not self.c or not all(0 < value < np.inf for value in self.c):
            raise ConfigError(f"c: {list(self.c)} must be numbers above 0; give e.g. [0.01].")
        if self.folds < 2:
            raise ConfigError(f"folds: {self.folds} cannot hold pairs out; give 2 or more.")

    def _vector(self, given: FitContext) -> SteeringVector:
        positive, negative = given.sides
        weights, chosen, loss = self._fit(positive, negative)
        length = float(np.linalg.norm(weights))
        mean = (positive - negative).mean(axis=0)
        projection = abs(float(mean @ weights)) / length if length else 0.0
        details = {"c": chosen} | ({} if loss is None else {"held_out_log_loss": loss})
        return given.vector(
            weights * (projection / length if length else 0.0),
            self.name,
            provenance={"settings": self.get_params(), "fit": details},
        )

    def _fit(
        self,
        positive: Float[np.ndarray, "pair d_model"],
        negative: Float[np.ndarray, "pair d_model"],
    ) -> tuple[Float[np.ndarray, " d_model"], float, float | None]:
        """Return raw weights, the chosen c and its held-out log-loss (None if not measured)."""
        from sklearn.model_selection import GridSearchCV, GroupKFold

        n = len(positive)
        both = np.concatenate([positive, negative])
        labels = np.repeat([1, 0], n)
        folds = min(self.folds, n)
        loss = None
        if folds < 2 or len(self.c) == 1:
            chosen = self.c[0] if len(self.c) == 1 else WITHOUT_CHOICE
            fitted: Any = _pipeline(chosen).fit(both, labels)
        else:
            search = GridSearchCV(
                _pipeline(self.c[0]),
                {"logisticregression__C": list(self.c)},
                scoring="neg_log_loss",
                cv=GroupKFold(folds),
            )
            search.fit(both, labels, groups=np.tile(np.arange(n), 2))
            fitted = search.best_estimator_
            chosen = float(search.best_params_["logisticregression__C"])
            loss = -float(search.best_score_)
        weights = np.ravel(fitted["logisticregression"].coef_)
        return weights / fitted["standardscaler"].scale_, chosen, loss


def _pipeline(c: float) -> Pipeline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=10_000, tol=1e-8))
