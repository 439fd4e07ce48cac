"""Sums of decoder rows whose weights are read off the codes, without a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field

from saesteer.methods.base import Method
from saesteer.methods.features import CRITERIA
from saesteer.methods.features.select import known_name, strongest_first
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector
from saesteer.utils.errors import DataError

OUTPUT_SCORE = "output_score"


def _by_feature(
    chosen: Int[np.ndarray, " feature"], weights: Float[np.ndarray, " feature"]
) -> dict[int, float]:
    return dict(zip(chosen.tolist(), weights.tolist(), strict=True))


@dataclass(repr=False, eq=False)
class MeanDecodedDelta(Method):
    """v = sum_j m_j d_j over all features, m_j being feature j's mean difference in activation.

    The part of the mean delta that the SAE sees: the decoder is linear, so this is the decoded
    mean difference of the sides' codes.

    Example:
        >>> vector = ss.MeanDecodedDelta().fit(model, train, sae=sae).vector_
    """

    _name = "mean_decoded_delta"

    def _vector(self, given: FitContext) -> SteeringVector:
        means = given.codes.mean_delta
        live = np.flatnonzero(means)
        return given.decoded(_by_feature(live, means[live]), self.name, self.get_params())


@dataclass(repr=False, eq=False)
class TargetAtoms(Method):
    """v = sum of a_j d_j over the features j that pass both thresholds.

    Wang et al. 2025 (arXiv 2505.20322): a_j is feature j's mean difference in activation and f_j
    the difference between the shares of positive and of negative texts on which it fires. Kept
    are features with |a_j| and |f_j| at or above their quantiles and a_j and f_j of one sign.
    The authors take quantiles over all features; here they are over those that fire on the pairs,
    so that they mean the same for a wide SAE, most of whose features never do.

    Attributes:
        amplitude_quantile: Quantile of |a_j|, from 0 to below 1; the authors' code keeps 35%.
        frequency_quantile: Quantile of |f_j| among the features whose signs agree.

    Example:
        >>> atoms = ss.TargetAtoms(amplitude_quantile=0.0, frequency_quantile=0.0)
        >>> vector = atoms.fit(model, train, sae=sae).vector_
    """

    _name = "target_atoms"
    amplitude_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.65
    frequency_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.65

    def _vector(self, given: FitContext) -> SteeringVector:
        codes = given.codes
        amplitude, frequency = codes.mean_delta, CRITERIA["frequency_difference"](codes)
        fires = codes.firing > 0
        agrees = fires & (amplitude * frequency > 0)
        kept = agrees & _at_least(amplitude, fires, self.amplitude_quantile)
        kept &= _at_least(frequency, agrees, self.frequency_quantile)
        chosen = np.flatnonzero(kept)
        weights = _by_feature(chosen, amplitude[chosen])
        return given.decoded(weights, self.name, self.get_params())


def _at_least(
    values: Float[np.ndarray, " d_sae"], among: Bool[np.ndarray, " d_sae"], quantile: float
) -> Bool[np.ndarray, " d_sae"]:
    sizes = np.abs(values)
    return sizes >= np.quantile(sizes[among], quantile) if among.any() else among


def _known_criterion(name: str) -> str:
    return known_name(name, {**CRITERIA, OUTPUT_SCORE: None})


@dataclass(repr=False, eq=False)
class TopFeature(Method):
    """The feature that a criterion puts first, as long as its mean difference in activation.

    The vector points along the decoder row for a feature of the positive side and against it for
    one of the negative side.

    Attributes:
        criterion: A name in `CRITERIA`, or "output_score": among the features that separate the
            sides best, the one whose steering the output shows most (Arad, Mueller & Belinkov
            2025, arXiv 2505.20063).
        n_candidates: For "output_score", how many features, best by |standardised_difference|
            among those that have a score, to choose from.
        side: "positive" for features of the positive side alone: one of the negative side tells a
            text of the positive side by its silence, which its largest activation does not show.
        scores_: `[d_sae]` the criterion's scores, positive for a feature of the positive side.

    Example:
        >>> fitted = ss.TopFeature("mean_difference").fit(model, train, sae=sae)
        >>> fitted.features_.tolist() == [abs(fitted.scores_).argmax()]
        True
    """

    criterion: Annotated[str, AfterValidator(_known_criterion)] = "standardised_difference"
    n_candidates: Annotated[int, Field(ge=1)] = 32
    side: Literal["either", "positive"] = "either"

    @property
    def name(self) -> str:
        """What settings files call the method."""
        return f"top_feature_{self.criterion}"

    def _vector(self, given: FitContext) -> SteeringVector:
        codes, by_output = given.codes, self.criterion == OUTPUT_SCORE
        ranked = CRITERIA["standardised_difference" if by_output else self.criterion](codes)
        separation = self.scores_ = np.nan_to_num(ranked)
        if self.side == "positive":
            separation = np.maximum(separation, 0.0)
            if not separation.any():
                raise DataError("no feature fires more on the positive side; leave side out.")
        if by_output:
            self.scores_ = given.output_scores
            index = self._best_by_output(separation, self.scores_)
        else:
            index = int(np.argmax(np.abs(separation)))
        # A feature that fires more often need not fire more strongly on average.
        size = abs(float(codes.mean_delta[index])) or 1.0
        weights = {index: float(np.sign(separation[index])) * size}
        return given.decoded(weights, self.name, self.get_params())

    def _best_by_output(
        self, separation: Float[np.ndarray, " d_sae"], output: Float[np.ndarray, " d_sae"]
    ) -> int:
        scored = np.flatnonzero(np.isfinite(output) & (separation != 0))
        if not scored.size:
            raise DataError(
                "no feature that has an output score differs between the sides; score features "
                "that do."
            )
        candidates = scored[strongest_first(separation[scored], scored)][: self.n_candidates]
        return int(candidates[np.argmax(output[candidates])])


@dataclass(repr=False, eq=False)
class RandomFeatures(Method):
    """Features drawn from those that fire otherwise on one side of a pair than on the other.

    A feature weighs its mean |difference| in activation between the sides, plus or minus at
    random, so that only the choice of features and their signs are left to chance.

    Attributes:
        draw: Which draw of the fit's seed; different draws are independent.
        n_features: How many features; all that fire where there are fewer.

    Example:
        >>> len(ss.RandomFeatures(n_features=5).fit(model, train, sae=sae).features_)
        5
    """

    _name = "random_features"
    draw: int = 0
    n_features: Annotated[int, Field(ge=1)] = 32

    def _vector(self, given: FitContext) -> SteeringVector:
        sizes, generator = given.codes.mean_size, given.generator(self.draw)
        live = np.flatnonzero(sizes)
        order = torch.randperm(len(live), generator=generator).numpy()
        chosen = live[order[: self.n_features]]
        signs = 2 * torch.randint(2, (len(chosen),), generator=generator).numpy() - 1
        weights, name = _by_feature(chosen, signs * sizes[chosen]), f"random features {self.draw}"
        return given.decoded(weights, self.name, self.get_params(), name=name)
