"""PCA of the pairs' differences: representation engineering as repeng does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError

Variant = Literal["pca_diff", "pca_center"]


@dataclass(repr=False, eq=False)
class PCA(Method):
    """The first principal component of the pairs' differences, as long as the mean delta.

    As in the package repeng (Vogel 2024, after Zou et al. 2023, arXiv 2310.01405), with its sign:
    the one by which more pairs project higher on their positive side.

    Attributes:
        variant: "pca_diff", repeng's default, is the PCA of the deltas, which takes their mean
            away first and so finds along what they vary; "pca_center" is that of both sides less
            their pair's midpoint, which keeps the mean.

    Example:
        >>> vector = ss.PCA().fit(model, train, site=sae.site).vector_
        >>> vector.method
        'pca'
    """

    _name = "pca"
    variant: Variant = "pca_diff"

    def check(self) -> None:
        """Check the settings."""
        if self.variant not in get_args(Variant):
            raise ConfigError(
                f"variant: {self.variant!r} is not known; use 'pca_diff' or 'pca_center'."
            )

    def _vector(self, given: FitContext) -> SteeringVector:
        positive, negative = given.sides
        delta = positive - negative
        mean = delta.mean(axis=0)
        component = _component(_training_rows(positive, negative, self.variant), mean)
        component *= _sign(delta @ component) * np.linalg.norm(mean)
        return given.vector(component, self.name, self.get_params())


def _training_rows(
    positive: Float[np.ndarray, "pair d_model"],
    negative: Float[np.ndarray, "pair d_model"],
    variant: Variant,
) -> Float[np.ndarray, "row d_model"]:
    delta = positive - negative
    return delta if variant == "pca_diff" else np.concatenate([delta / 2, -delta / 2])


def _component(
    rows: Float[np.ndarray, "row d_model"], mean: Float[np.ndarray, " d_model"]
) -> Float[np.ndarray, " d_model"]:
    from sklearn.decomposition import PCA

    spread = float(np.abs(rows - rows.mean(axis=0)).max())
    if spread <= 1e-9 * float(np.abs(rows).max()):
        # One pair, or equal deltas: nothing varies, and the delta is the only direction there is.
        return mean / (float(np.linalg.norm(mean)) or 1.0)
    fitted: Any = PCA(n_components=1, svd_solver="full").fit(rows)
    return fitted.components_[0].copy()


def _sign(projections: Float[np.ndarray, " pair"]) -> float:
    votes = float(np.sign(projections).sum())
    # At a tie repeng keeps the sign that the solver happened to give.
    return np.sign(votes or projections.sum()) or 1.0
