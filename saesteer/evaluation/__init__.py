"""Did it steer, and at what cost."""

from saesteer.evaluation.comparison import (
    EqualCostComparison,
    NullComparison,
    VectorResult,
    against_null,
    is_monotone,
)
from saesteer.evaluation.likelihood import TeacherForced, statement_log_likelihoods
from saesteer.evaluation.propensity import Effect, PropensityMeter, effect_of
from saesteer.steering.divergence import DivergenceMeter, StrengthMatch, match_strength

__all__ = [
    "DivergenceMeter",
    "Effect",
    "EqualCostComparison",
    "NullComparison",
    "PropensityMeter",
    "StrengthMatch",
    "TeacherForced",
    "VectorResult",
    "against_null",
    "effect_of",
    "is_monotone",
    "match_strength",
    "statement_log_likelihoods",
]
