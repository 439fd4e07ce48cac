"""Ways from contrastive pairs to a steering vector, all with one signature."""

from saesteer.methods.answer_letters import answer_pairs
from saesteer.methods.attributed_sae import AttributedSAE
from saesteer.methods.base import Method
from saesteer.methods.bipo import BiPO
from saesteer.methods.clustered_sae import ClusteredSAE
from saesteer.methods.dense import (
    CAA,
    PCA,
    DifferenceInMeans,
    LogisticProbe,
    NaturalGradient,
    RandomDirection,
)
from saesteer.methods.feature_sums import MeanDecodedDelta, RandomFeatures, TargetAtoms, TopFeature
from saesteer.methods.fit_context import FitContext
from saesteer.methods.settings import ObjectiveSettings, ReadingSettings
from saesteer.methods.system_prompt import SystemPrompt

__all__ = [
    "CAA",
    "PCA",
    "AttributedSAE",
    "BiPO",
    "ClusteredSAE",
    "DifferenceInMeans",
    "FitContext",
    "LogisticProbe",
    "MeanDecodedDelta",
    "Method",
    "NaturalGradient",
    "ObjectiveSettings",
    "RandomDirection",
    "RandomFeatures",
    "ReadingSettings",
    "SystemPrompt",
    "TargetAtoms",
    "TopFeature",
    "answer_pairs",
]
