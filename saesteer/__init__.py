"""saesteer: steer language models with sparse-autoencoder features, with evidence that it works.

The names below are loaded on first use, so `import saesteer` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saesteer.data import PairSet, pairs_from, read_pairs, split_pairs
    from saesteer.evaluation import EffectMeter, PropensityMeter
    from saesteer.experiments.steer.run import run
    from saesteer.methods import ClusteredSae, DifferenceInMeans, MethodInputs, RandomDirection
    from saesteer.methods.features import (
        cluster_features,
        encode_pairs,
        fit_weights,
        select_features,
    )
    from saesteer.models import Site, load_model, plain_model, wrap_model
    from saesteer.models.pair_activations import read_pair_activations
    from saesteer.saes import doctor, load_sae
    from saesteer.steering import SteeringVector, generate, steer
    from saesteer.steering.divergence import DivergenceMeter
    from saesteer.utils.settings import RunConfig, load_config

__version__ = "0.1.0"

_HOMES = {
    "activations": ("read_pair_activations",),
    "config": ("RunConfig", "load_config"),
    "data": ("PairSet", "pairs_from", "read_pairs", "split_pairs"),
    "evaluation": ("DivergenceMeter", "EffectMeter", "PropensityMeter"),
    "features": ("cluster_features", "encode_pairs", "fit_weights", "select_features"),
    "methods": ("ClusteredSae", "DifferenceInMeans", "MethodInputs", "RandomDirection"),
    "models": ("Site", "load_model", "plain_model", "wrap_model"),
    "pipeline": ("run",),
    "saes": ("doctor", "load_sae"),
    "steering": ("SteeringVector", "generate", "steer"),
}

__all__ = [
    "ClusteredSae",
    "DifferenceInMeans",
    "DivergenceMeter",
    "EffectMeter",
    "MethodInputs",
    "PairSet",
    "PropensityMeter",
    "RandomDirection",
    "RunConfig",
    "Site",
    "SteeringVector",
    "cluster_features",
    "doctor",
    "encode_pairs",
    "fit_weights",
    "generate",
    "load_config",
    "load_model",
    "load_sae",
    "pairs_from",
    "plain_model",
    "read_pair_activations",
    "read_pairs",
    "run",
    "select_features",
    "split_pairs",
    "steer",
    "wrap_model",
]


def __getattr__(name: str) -> object:
    for room, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"saesteer.{room}"), name)
    raise AttributeError(f"module 'saesteer' has no attribute {name!r}")
