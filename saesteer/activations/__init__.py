"""Reading the residual stream at chosen positions."""

from saesteer.activations.pairs import PairActivations, read_pair_activations
from saesteer.activations.pooling import Pooling, mean_norm, pool
from saesteer.activations.reading import Activations, read_rows

__all__ = [
    "Activations",
    "PairActivations",
    "Pooling",
    "mean_norm",
    "pool",
    "read_pair_activations",
    "read_rows",
]
