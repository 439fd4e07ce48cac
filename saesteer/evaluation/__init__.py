"""Did it steer, and at what cost."""

from saesteer.evaluation.effect import (
    Effect,
    EffectMeter,
    NullComparison,
    VectorResult,
    against_null,
    effect_of,
    is_monotone,
)
from saesteer.evaluation.likelihood import TeacherForced, statement_log_likelihoods
from saesteer.evaluation.propensity import PropensityMeter
from saesteer.steering.divergence import DivergenceMeter, StrengthMatch, match_strength

__all__ = [
    "DivergenceMeter",
    "Effect",
    "EffectMeter",
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
