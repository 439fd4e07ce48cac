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

__all__ = [
    "Effect",
    "EffectMeter",
    "NullComparison",
    "PropensityMeter",
    "TeacherForced",
    "VectorResult",
    "against_null",
    "effect_of",
    "is_monotone",
    "statement_log_likelihoods",
]
