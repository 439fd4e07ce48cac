"""The methods that settings files and tables know by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from saesteer import methods as m
from saesteer.methods.estimator import parameters_of
from saesteer.methods.features import (
    CRITERIA,
    ClusteringSettings,
    RegressionSettings,
    SelectionSettings,
)
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, parse_config
from saesteer.utils.text import nearest

# Settings that a method hands on to a stage as they are, and what may stand in them.
STAGES: dict[str, type[Settings]] = {
    "selection": SelectionSettings,
    "clustering": ClusteringSettings,
    "regression": RegressionSettings,
}


class MethodEntry(NamedTuple):
    """How a method is made, and what tables call it."""

    name: str
    label: str
    kind: Literal["sae", "dense", "prompt", "null"]
    make: type[m.Method | m.SystemPrompt]
    # What is costly to compute for it besides activations and codes: objective or answers.
    needs: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = {}
    # The kind of judge whose readings it is fitted to, if it is fitted to any.
    learns_from: str | None = None


_OBJECTIVE = frozenset({"objective"})
# What the model would rather say as either side is what a judge by description reads.
_LEARNS: Any = {"needs": _OBJECTIVE, "learns_from": "generative"}
_LISTED = [
    MethodEntry("attributed_sae", "SAE features, attribution", "sae", m.AttributedSAE, **_LEARNS),
    MethodEntry(
        "attributed_tied",
        "SAE features, attribution, signs tied",
        "sae",
        m.AttributedSAE,
        fixed={"signs": "tied", "candidates": "clustered"},
        **_LEARNS,
    ),
    MethodEntry("clustered_sae", "SAE features, delta regression", "sae", m.ClusteredSAE),
    MethodEntry("mean_decoded_delta", "decoded mean SAE delta", "sae", m.MeanDecodedDelta),
    MethodEntry("target_atoms", "steering target atoms", "sae", m.TargetAtoms),
    MethodEntry("difference_in_means", "difference in means", "dense", m.DifferenceInMeans),
    MethodEntry(
        "natural_gradient",
        "Fisher-preconditioned gradient",
        "dense",
        m.NaturalGradient,
        **_LEARNS,
    ),
    MethodEntry("bipo", "BiPO", "dense", m.BiPO),
    MethodEntry("caa_answers", "CAA on answer letters", "dense", m.CAA, frozenset({"answers"})),
    MethodEntry("pca", "PCA of the differences", "dense", m.PCA),
    MethodEntry("logistic_probe", "logistic probe", "dense", m.LogisticProbe),
    MethodEntry("system_prompt", "persona system prompt", "prompt", m.SystemPrompt),
    *(
        MethodEntry(
            f"top_feature_{criterion}",
            f"top feature, {criterion.replace('_', ' ')}",
            "sae",
            m.TopFeature,
            fixed={"criterion": criterion},
        )
        for criterion in (*CRITERIA, "output_score")
    ),
]
METHODS: dict[str, MethodEntry] = {entry.name: entry for entry in _LISTED}
_NUMBERED = re.compile(r"attributed_sae_([1-9]\d{0,4})")


def n_features_named(name: str) -> int | None:
    """Return the number of features in a name such as "attributed_sae_8"; None without one."""
    found = _NUMBERED.fullmatch(name)
    return int(found[1]) if found else None


def method_entry(name: str) -> MethodEntry:
    """Return a method by name; "attributed_sae_8" is attributed_sae with 8 features.

    Raises:
        ConfigError: There is none; the nearest is named.
    """
    n = n_features_named(name)
    if n is not None:
        label = f"{n} SAE feature{'s' if n > 1 else ''}, attribution"
        return METHODS["attributed_sae"]._replace(name=name, label=label, fixed={"n_features": n})
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is unknown{nearest(name, METHODS)}; correct it.")
    return METHODS[name]


def build_method(name: str, settings: Mapping[str, Any]) -> m.Method | m.SystemPrompt:
    """Return a method with its settings.

    Raises:
        ConfigError: The method or a setting is unknown, or a value does not fit.
    """
    entry = method_entry(name)
    for stage in STAGES.keys() & settings.keys():
        parse_config(settings[stage], kind=STAGES[stage], place=f"method {name}: {stage}")
    kind = parameters_of(entry.make, frozenset(entry.fixed))
    given = parse_config(dict(settings), kind=kind, place=f"method {name}")
    return entry.make(**given.model_dump(exclude_unset=True), **entry.fixed)
