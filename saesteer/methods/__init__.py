"""Ways from contrastive pairs to a steering vector, all with one signature."""

from saesteer.methods.answer_letters import answer_pairs
from saesteer.methods.attributed_sae import AttributedSAE
from saesteer.methods.base import Method
from saesteer.methods.caa_answers import CAA
from saesteer.methods.clustered_sae import ClusteredSAE
from saesteer.methods.difference_in_means import DifferenceInMeans
from saesteer.methods.fit_context import FitContext
from saesteer.methods.logistic_probe import LogisticProbe
from saesteer.methods.mean_decoded_delta import MeanDecodedDelta
from saesteer.methods.natural_gradient import NaturalGradient
from saesteer.methods.pca import PCA
from saesteer.methods.random_direction import RandomDirection
from saesteer.methods.random_features import RandomFeatures
from saesteer.methods.settings import ObjectiveSettings, ReadingSettings
from saesteer.methods.system_prompt import SystemPrompt
from saesteer.methods.target_atoms import TargetAtoms
from saesteer.methods.top_feature import TopFeature

__all__ = [
    "CAA",
    "PCA",
    "AttributedSAE",
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
