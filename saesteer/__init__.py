"""saesteer: steer language models with sparse-autoencoder features, with evidence that it works.

The names below are loaded on first use, so `import saesteer` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saesteer.data import PairSet, pairs_from, read_pairs, split_pairs
    from saesteer.evaluation import EffectMeter, PropensityMeter
    from saesteer.experiments.registry import run_experiment as run
    from saesteer.experiments.results import Results
    from saesteer.experiments.steer.config import RunConfig
    from saesteer.methods import ClusteredSae, DifferenceInMeans, MethodInputs, RandomDirection
    from saesteer.methods.features import (
        cluster_features,
        encode_pairs,
        fit_weights,
        select_features,
    )
    from saesteer.models import Site, load_model, plain_model, wrap_model
    from saesteer.models.pair_activations import read_pair_activations
    from saesteer.probes.estimator import Probe
    from saesteer.saes import doctor, load_sae
    from saesteer.steering import SteeringVector, generate, intervene, load_vector, steer
    from saesteer.steering.divergence import DivergenceMeter
    from saesteer.utils.settings import load_config

__version__ = "0.1.0"

# Where each name lives, and what it is called there.
_NAMES = {
    "ClusteredSae": "methods:ClusteredSae",
    "DifferenceInMeans": "methods:DifferenceInMeans",
    "DivergenceMeter": "steering.divergence:DivergenceMeter",
    "EffectMeter": "evaluation:EffectMeter",
    "MethodInputs": "methods:MethodInputs",
    "PairSet": "data:PairSet",
    "Probe": "probes.estimator:Probe",
    "PropensityMeter": "evaluation:PropensityMeter",
    "RandomDirection": "methods:RandomDirection",
    "Results": "experiments.results:Results",
    "RunConfig": "experiments.steer.config:RunConfig",
    "Site": "models:Site",
    "SteeringVector": "steering:SteeringVector",
    "cluster_features": "methods.features:cluster_features",
    "doctor": "saes:doctor",
    "encode_pairs": "methods.features:encode_pairs",
    "fit_weights": "methods.features:fit_weights",
    "generate": "steering:generate",
    "intervene": "steering:intervene",
    "load_config": "utils.settings:load_config",
    "load_model": "models:load_model",
    "load_sae": "saes:load_sae",
    "load_vector": "steering:load_vector",
    "pairs_from": "data:pairs_from",
    "plain_model": "models:plain_model",
    "read_pair_activations": "models.pair_activations:read_pair_activations",
    "read_pairs": "data:read_pairs",
    "run": "experiments.registry:run_experiment",
    "select_features": "methods.features:select_features",
    "split_pairs": "data:split_pairs",
    "steer": "steering:steer",
    "wrap_model": "models:wrap_model",
}

__all__ = [
    "ClusteredSae",
    "DifferenceInMeans",
    "DivergenceMeter",
    "EffectMeter",
    "MethodInputs",
    "PairSet",
    "Probe",
    "PropensityMeter",
    "RandomDirection",
    "Results",
    "RunConfig",
    "Site",
    "SteeringVector",
    "cluster_features",
    "doctor",
    "encode_pairs",
    "fit_weights",
    "generate",
    "intervene",
    "load_config",
    "load_model",
    "load_sae",
    "load_vector",
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
    if name in _NAMES:
        module, attribute = _NAMES[name].split(":")
        return getattr(import_module(f"saesteer.{module}"), attribute)
    raise AttributeError(f"module 'saesteer' has no attribute {name!r}")
