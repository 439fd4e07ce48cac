"""The single best feature: what one decoder row does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from saesteer.methods.base import Method
from saesteer.methods.features import CRITERIA
from saesteer.methods.features.select import strongest_first
from saesteer.methods.fit_context import FitContext
from saesteer.methods.settings import choose
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError, DataError

OUTPUT_SCORE = "output_score"


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
        scores_: `[d_sae]` the criterion's scores, positive for a feature of the positive side.

    Example:
        >>> fitted = ss.TopFeature("mean_difference").fit(model, train, sae=sae)
        >>> fitted.features_[0] == abs(fitted.scores_).argmax()
        True
    """

    criterion: str = "standardised_difference"
    n_candidates: int = 32

    def check(self) -> None:
        """Check the settings."""
        choose({**CRITERIA, OUTPUT_SCORE: None}, self.criterion, field="criterion")
        if self.n_candidates < 1:
            raise ConfigError(
                f"n_candidates: {self.n_candidates} features hold no choice; give 1 or more."
            )

    @property
    def name(self) -> str:
        """What settings files call the method."""
        return f"top_feature_{self.criterion}"

    def _vector(self, given: FitContext) -> SteeringVector:
        codes = given.codes
        by_output = self.criterion == OUTPUT_SCORE
        ranked = CRITERIA["standardised_difference" if by_output else self.criterion](codes)
        separation = np.nan_to_num(ranked)
        if by_output:
            self.scores_ = given.output_scores
            index = self._best_by_output(separation, self.scores_)
        else:
            self.scores_ = separation
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
