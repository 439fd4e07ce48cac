"""The methods that settings files and tables know by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from saesteer import methods as m
from saesteer.methods.features import CLUSTERINGS, CRITERIA, REGRESSIONS
from saesteer.methods.settings import (
    ClusteringSettings,
    RegressionSettings,
    SelectionSettings,
    choose,
)
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, check_yes_and_no, parse_config
from saesteer.utils.text import nearest

Kind = Literal["sae", "dense", "prompt", "null"]
Need = Literal["objective", "answers", "output_scores"]

# Settings that a method hands on to a stage, the name in them, and what may stand there.
GROUPS: dict[str, tuple[type[Settings], str, Mapping[str, Any]]] = {
    "selection": (SelectionSettings, "criterion", CRITERIA),
    "clustering": (ClusteringSettings, "method", CLUSTERINGS),
    "regression": (RegressionSettings, "method", REGRESSIONS),
}


@dataclass(frozen=True)
class MethodEntry:
    """How a method is made and shown: `label` is what tables call it, `fixed` its own settings."""

    name: str
    label: str
    kind: Kind
    make: type[m.Method | m.SystemPrompt]
    # What is costly to compute for it besides activations and codes.
    needs: frozenset[Need] = frozenset()
    fixed: dict[str, Any] = field(default_factory=dict)


@cache
def method_entries() -> dict[str, MethodEntry]:
    """Return every method by name."""
    objective: frozenset[Need] = frozenset({"objective"})
    listed = [
        MethodEntry(
            "attributed_sae",
            "SAE features, attribution weights",
            "sae",
            m.AttributedSAE,
            objective,
        ),
        MethodEntry(
            "attributed_tied",
            "SAE features, attribution, signs tied",
            "sae",
            m.AttributedSAE,
            objective,
            {"signs": "tied"},
        ),
        MethodEntry(
            "attributed_any",
            "any SAE feature, attribution",
            "sae",
            m.AttributedSAE,
            objective,
            {"candidates": "any"},
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
            objective,
        ),
        MethodEntry("caa_answers", "CAA on answer letters", "dense", m.CAA, frozenset({"answers"})),
        MethodEntry("pca", "PCA of the differences", "dense", m.PCA),
        MethodEntry("logistic_probe", "logistic probe", "dense", m.LogisticProbe),
        MethodEntry("system_prompt", "persona system prompt", "prompt", m.SystemPrompt),
    ]
    for criterion in (*CRITERIA, "output_score"):
        listed.append(
            MethodEntry(
                f"top_feature_{criterion}",
                f"top feature, {criterion.replace('_', ' ')}",
                "sae",
                m.TopFeature,
                frozenset({"output_scores"} if criterion == "output_score" else ()),
                {"criterion": criterion},
            )
        )
    return {entry.name: entry for entry in listed}


def method_entry(name: str) -> MethodEntry:
    """Return a method by name.

    Raises:
        ConfigError: There is none; the nearest is named.
    """
    known = method_entries()
    if name not in known:
        raise ConfigError(f"method {name!r} is unknown{nearest(name, known)}; correct it.")
    return known[name]


def build_method(name: str, settings: Mapping[str, Any]) -> m.Method | m.SystemPrompt:
    """Return a method with its settings.

    Raises:
        ConfigError: The method or a setting is unknown, or a value does not fit.
    """
    entry = method_entry(name)
    known = [f.name for f in fields(entry.make) if f.name not in entry.fixed]
    types = get_type_hints(entry.make)
    for setting, value in settings.items():
        if setting not in known:
            raise ConfigError(
                f"method {name} has no setting {setting!r}; it has {', '.join(known) or 'none'}."
            )
        if setting in GROUPS and isinstance(value, dict):
            kind, named, choices = GROUPS[setting]
            place = f"method {name}: {setting}"
            parsed = parse_config(value, kind=kind, place=place)
            choose(choices, getattr(parsed, named), field=f"{place}: {named}")
        try:
            check_yes_and_no(value, types[setting])
        except ValueError as error:
            raise ConfigError(f"method {name}: {setting}: {error}.") from None
    try:
        return TypeAdapter(entry.make).validate_python({**settings, **entry.fixed})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"])
        raise ConfigError(
            f"method {name}: {place}: {message[:1].lower()}{message[1:]}; correct it."
        ) from error
