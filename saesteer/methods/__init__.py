"""Ways from contrastive pairs to a steering vector, all with one signature."""

from saesteer.methods.base import Method, MethodInputs
from saesteer.methods.clustered_sae import ClusteredSae, ClusteredSaeFit
from saesteer.methods.difference_in_means import DifferenceInMeans
from saesteer.methods.random_direction import RandomDirection

__all__ = [
    "ClusteredSae",
    "ClusteredSaeFit",
    "DifferenceInMeans",
    "Method",
    "MethodInputs",
    "RandomDirection",
]
