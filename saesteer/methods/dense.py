"""Directions without features: what SAE methods are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field, PositiveFloat

from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.methods.objective import Vector, linearised
from saesteer.methods.sites import at_sites, joint
from saesteer.models import Site
from saesteer.steering import SteeringVector

Sides = Float[np.ndarray, "pair d_model"]
# A site's name, checked.
SiteName = Annotated[str, AfterValidator(lambda name: str(Site.parse(name)))]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# The probe's penalty where there is but one pair to choose it on.
WITHOUT_CHOICE = 1e-2


@dataclass(repr=False, eq=False)
class DifferenceInMeans(Method):
    """The mean over pairs of positive minus negative activation.

    This is the vector of contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681)
    at the pairs' own positions.

    Example:
        >>> vector = ss.DifferenceInMeans().fit(model, train, site=sae.site).vector_
        >>> vector.method
        'difference_in_means'
    """

    _name = "difference_in_means"

    def _vector(self, given: FitContext) -> SteeringVector:
        return given.vector(given.deltas.mean(dim=0), self.name)


@dataclass(repr=False, eq=False)
class CAA(Method):
    """The mean over questions of the matching letter's activation minus the other letter's.

    Contrastive activation addition as published (Rimsky et al. 2024, arXiv 2312.06681): the same
    question with both statements as options, answered once with each letter, read at the letter.

    Example:
        >>> vector = ss.CAA().fit(model, train, site=sae.site).vector_
        >>> vector.read_positions
        'answer letter token'
    """

    _name = "caa_answers"

    def _vector(self, given: FitContext) -> SteeringVector:
        mean, where = given.answers.deltas.mean(dim=0), "answer letter token"
        return given.vector(mean, self.name, self.get_params(), read_positions=where)


@dataclass(repr=False, eq=False)
class RandomDirection(Method):
    """A direction drawn uniformly from the sphere, as long as the mean delta.

    Attributes:
        draw: Which draw of the fit's seed; different draws are independent.

    Example:
        >>> vector = ss.RandomDirection(draw=3).fit(model, train, site=sae.site).vector_
        >>> vector.name
        'random 3'
    """

    _name = "random_direction"
    draw: int = 0

    def _vector(self, given: FitContext) -> SteeringVector:
        delta = given.deltas.mean(dim=0)
        raw = torch.randn(len(delta), generator=given.generator(self.draw), dtype=torch.float64)
        raw *= float(delta.norm()) / raw.norm()
        return given.vector(raw, self.name, self.get_params(), name=f"random {self.draw}")


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
    variant: Literal["pca_diff", "pca_center"] = "pca_diff"

    def _vector(self, given: FitContext) -> SteeringVector:
        positive, negative = given.sides
        delta = positive - negative
        mean = delta.mean(axis=0)
        centred = self.variant == "pca_center"
        component = _component(np.concatenate([delta / 2, -delta / 2]) if centred else delta, mean)
        projections = delta @ component
        # At a tie repeng keeps the sign that the solver happened to give.
        votes = float(np.sign(projections).sum()) or projections.sum()
        component *= (np.sign(votes) or 1.0) * np.linalg.norm(mean)
        return given.vector(component, self.name, self.get_params())


def _component(rows: Sides, mean: Vector) -> Vector:
    from sklearn.decomposition import PCA

    spread = float(np.abs(rows - rows.mean(axis=0)).max())
    if spread <= 1e-9 * float(np.abs(rows).max()):
        # One pair, or equal deltas: nothing varies, and the delta is the only direction there is.
        return mean / (float(np.linalg.norm(mean)) or 1.0)
    fitted: Any = PCA(n_components=1, svd_solver="full").fit(rows)
    return fitted.components_[0].copy()


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
    c: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = PENALTIES
    folds: Annotated[int, Field(ge=2)] = 5

    def _vector(self, given: FitContext) -> SteeringVector:
        positive, negative = given.sides
        weights, fit = self._fit(positive, negative)
        length = float(np.linalg.norm(weights))
        mean = (positive - negative).mean(axis=0)
        projection = abs(float(mean @ weights)) / length if length else 0.0
        return given.vector(
            weights * (projection / length if length else 0.0),
            self.name,
            provenance={"settings": self.get_params(), "fit": fit},
        )

    def _fit(self, positive: Sides, negative: Sides) -> tuple[Vector, dict[str, float]]:
        """Return raw weights, and the chosen c with its held-out log-loss where measured."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, GroupKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        n = len(positive)
        both, labels = np.concatenate([positive, negative]), np.repeat([1, 0], n)
        choices = self.c if n > 1 or len(self.c) == 1 else (WITHOUT_CHOICE,)
        regression = LogisticRegression(C=choices[0], max_iter=10_000, tol=1e-8)
        pipeline: Any = make_pipeline(StandardScaler(), regression)
        fit = {"c": choices[0]}
        if len(choices) == 1:
            pipeline.fit(both, labels)
        else:
            search = GridSearchCV(
                pipeline,
                {"logisticregression__C": list(choices)},
                scoring="neg_log_loss",
                cv=GroupKFold(min(self.folds, n)),
            )
            search.fit(both, labels, groups=np.tile(np.arange(n), 2))
            pipeline = search.best_estimator_
            fit = {"c": float(pipeline[-1].C), "held_out_log_loss": -float(search.best_score_)}
        return np.ravel(pipeline[-1].coef_) / pipeline[0].scale_, fit


@dataclass(repr=False, eq=False)
class NaturalGradient(Method):
    """The target of attributed SAE regression itself, t = F^-1 g, in no feature's terms.

    Attributes:
        rounds: How often to linearise around the target of the round before.
        ridge: Added to the Fisher metric's diagonal, in units of its mean; 0 or more.
        also: Further sites, such as "blocks.20.hook_resid_post": t is of all of them at once, and
            the vector has a part at each.

    Example:
        >>> quick = ss.ObjectiveSettings(prompted=0, fisher_samples=2, kl_target=0.05)
        >>> method = ss.NaturalGradient().fit(model, train, site=sae.site, objective=quick)
        >>> method.vector_.method
        'natural_gradient'
    """

    _name = "natural_gradient"
    rounds: Annotated[int, Field(ge=0)] = 1
    ridge: Annotated[float, Field(ge=0)] = 1.0
    also: tuple[SiteName, ...] = ()

    def _vector(self, given: FitContext) -> SteeringVector:
        contexts, objective = joint(given, self.also)
        delta = given.mean_delta
        size = np.linalg.norm(delta)

        def target(gain: Vector) -> Vector:
            raw = objective.metric.solve(gain, self.ridge)
            length = np.linalg.norm(raw[: len(delta)])
            # Nothing to gain has no direction, which the vector then says.
            return raw * (size / length if length else 0.0)

        raw, _ = linearised(objective, self.rounds, target)
        settings = self.get_params()
        return at_sites(contexts, raw, lambda one, part: one.vector(part, self.name, settings))
