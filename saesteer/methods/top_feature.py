"""The single best feature: what one decoder row does."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from saesteer.methods.base import MethodInputs
from saesteer.methods.features import CRITERIA, PairCodes
from saesteer.methods.features.registry import choose
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError, DataError, MismatchError

OUTPUT_SCORE = "output_score"


@dataclass(frozen=True)
class TopFeature:
    """The feature that a criterion puts first, as long as its mean difference in activation.

    The vector points along the decoder row for a feature of the positive side and against it for
    one of the negative side.

    Attributes:
        criterion: A name in `CRITERIA`, or "output_score": among the features that separate the
            sides best, the one whose steering the output shows most (Arad, Mueller & Belinkov
            2025, arXiv 2505.20063).
        n_candidates: For "output_score", how many features, best by |standardised_difference|
            among those that have a score, to choose from.
    """

    criterion: str = "standardised_difference"
    n_candidates: int = 32

    def __post_init__(self) -> None:
        choose({**CRITERIA, OUTPUT_SCORE: None}, self.criterion, field="criterion")
        if self.n_candidates < 1:
            raise ConfigError(
                f"n_candidates: {self.n_candidates} features hold no choice; give 1 or more."
            )

    @property
    def name(self) -> str:
        """The method's name."""
        return f"top_feature_{self.criterion}"

    def __call__(self, inputs: MethodInputs) -> SteeringVector:
        """Return the feature's vector.

        Raises:
            ConfigError: There is no SAE, or no output score was computed.
            MismatchError: The output scores are of another SAE.
            SteeringError: No feature differs between the sides.
        """
        codes, _ = inputs.needs_sae(self.name)
        if self.criterion == OUTPUT_SCORE:
            index, sign = self._by_output(codes, inputs.output_scores)
        else:
            scores = np.nan_to_num(CRITERIA[self.criterion](codes))
            index = int(np.argmax(np.abs(scores)))
            sign = float(np.sign(scores[index]))
        # A feature that fires more often need not fire more strongly on average.
        size = abs(float(codes.mean_delta[index])) or 1.0
        return inputs.decoded({index: sign * size}, self.name, asdict(self))

    def _by_output(
        self, codes: PairCodes, output: Float[np.ndarray, " d_sae"] | None
    ) -> tuple[int, float]:
        if output is None or not np.isfinite(output).any():
            raise ConfigError(
                f"method {self.name} needs output scores; give output_scores=output_scores(model, "
                "sae, features)."
            )
        if len(output) != codes.d_sae:
            raise MismatchError(
                f"output_scores are of {len(output)} features and the SAE has {codes.d_sae}; "
                "compute them with this SAE."
            )
        separation = np.nan_to_num(CRITERIA["standardised_difference"](codes))
        scored = np.flatnonzero(np.isfinite(output) & (separation != 0))
        if not scored.size:
            raise DataError(
                "no feature that has an output score differs between the sides; score features "
                "that do."
            )
        order = np.lexsort((scored, -np.abs(separation[scored])))
        candidates = scored[order][: self.n_candidates]
        index = int(candidates[np.argmax(output[candidates])])
        return index, float(np.sign(separation[index]))
