"""Did it steer, and at what cost."""

from saesteer.evaluation.effect import (
    Effect,
    EffectMeter,
    NullComparison,
    PropensityMeter,
    VectorResult,
    against_null,
    effect_of,
    evaluate,
    is_monotone,
    statement_log_likelihoods,
)

__all__ = [
    "Effect",
    "EffectMeter",
    "NullComparison",
    "PropensityMeter",
    "VectorResult",
    "against_null",
    "effect_of",
    "evaluate",
    "is_monotone",
    "statement_log_likelihoods",
]
