"""Ways from contrastive pairs to a steering vector, all with one signature."""

from saesteer.methods.attributed_sae import AttributedSae, AttributedSaeFit
from saesteer.methods.base import Method, MethodInputs
from saesteer.methods.caa_answers import CaaAnswers, answer_pairs
from saesteer.methods.clustered_sae import ClusteredSae, ClusteredSaeFit
from saesteer.methods.difference_in_means import DifferenceInMeans
from saesteer.methods.logistic_probe import LogisticProbe
from saesteer.methods.mean_decoded_delta import MeanDecodedDelta
from saesteer.methods.natural_gradient import NaturalGradient
from saesteer.methods.pca import Pca
from saesteer.methods.random_direction import RandomDirection
from saesteer.methods.random_features import RandomFeatures
from saesteer.methods.system_prompt import PromptPersona, SystemPrompt
from saesteer.methods.target_atoms import TargetAtoms
from saesteer.methods.top_feature import TopFeature

__all__ = [
    "AttributedSae",
    "AttributedSaeFit",
    "CaaAnswers",
    "ClusteredSae",
    "ClusteredSaeFit",
    "DifferenceInMeans",
    "LogisticProbe",
    "MeanDecodedDelta",
    "Method",
    "MethodInputs",
    "NaturalGradient",
    "Pca",
    "PromptPersona",
    "RandomDirection",
    "RandomFeatures",
    "SystemPrompt",
    "TargetAtoms",
    "TopFeature",
    "answer_pairs",
]
