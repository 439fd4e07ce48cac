"""The methods that a comparison knows by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from saesteer.methods.settings import ClusteringSettings, RegressionSettings, SelectionSettings
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, check_yes_and_no, parse_config

if TYPE_CHECKING:
    from saesteer.methods import Method, SystemPrompt

Kind = Literal["sae", "dense", "prompt", "null"]
Need = Literal["objective", "answers", "output_scores"]


@dataclass(frozen=True)
class MethodEntry:
    """How a method is made and shown.

    Attributes:
        name: What settings files call it.
        label: What tables call it.
        kind: What it is made of.
        make: Takes its settings.
        needs: What is to be computed for it besides activations and codes.
    """

    name: str
    label: str
    kind: Kind
    make: Any
    needs: frozenset[Need] = field(default_factory=frozenset)


def method_entries() -> dict[str, MethodEntry]:
    """Return every method by name."""
    from saesteer import methods as m
    from saesteer.methods.features import CRITERIA

    objective: frozenset[Need] = frozenset({"objective"})
    listed = [
        MethodEntry(
            "attributed_sae",
            "SAE features, attribution weights",
            "sae",
            m.AttributedSae,
            objective,
        ),
        MethodEntry(
            "attributed_tied",
            "SAE features, attribution, signs tied",
            "sae",
            partial(m.AttributedSae, signs="tied"),
            objective,
        ),
        MethodEntry(
            "attributed_any",
            "any SAE feature, attribution",
            "sae",
            partial(m.AttributedSae, candidates="any"),
            objective,
        ),
        MethodEntry("clustered_sae", "SAE features, delta regression", "sae", m.ClusteredSae),
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
        MethodEntry(
            "caa_answers", "CAA on answer letters", "dense", m.CaaAnswers, frozenset({"answers"})
        ),
        MethodEntry("pca", "PCA of the differences", "dense", m.Pca),
        MethodEntry("logistic_probe", "logistic probe", "dense", m.LogisticProbe),
        MethodEntry("system_prompt", "persona system prompt", "prompt", m.SystemPrompt),
    ]
    for criterion in (*CRITERIA, "output_score"):
        listed.append(
            MethodEntry(
                f"top_feature_{criterion}",
                f"top feature, {criterion.replace('_', ' ')}",
                "sae",
                partial(m.TopFeature, criterion),
                frozenset({"output_scores"} if criterion == "output_score" else ()),
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
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"method {name!r} is unknown{hint}; choose from {', '.join(known)}.")
    return known[name]


def build_method(name: str, settings: dict[str, Any]) -> Method | SystemPrompt:
    """Return a method with its settings.

    Raises:
        ConfigError: The method or a setting is unknown, or a value does not fit.
    """
    make = method_entry(name).make
    kind = getattr(make, "func", make)
    fixed = dict(getattr(make, "keywords", {}))
    fixed |= dict(zip(["criterion"], getattr(make, "args", ()), strict=False))
    known = [f.name for f in fields(kind) if f.name not in fixed]
    types = get_type_hints(kind)
    for setting in settings:
        if setting not in known:
            raise ConfigError(
                f"method {name} has no setting {setting!r}; it has {', '.join(known) or 'none'}."
            )
        _check_group(name, setting, settings[setting])
        try:
            check_yes_and_no(settings[setting], types[setting])
        except ValueError as error:
            raise ConfigError(f"method {name}: {setting}: {error}.") from None
    try:
        return TypeAdapter(kind).validate_python({**settings, **fixed})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"])
        raise ConfigError(
            f"method {name}: {place}: {message[:1].lower()}{message[1:]}; correct it."
        ) from error


def _check_group(method: str, setting: str, values: Any) -> None:
    """Check settings that a method hands on, before they are needed."""
    from saesteer.methods.features import CLUSTERINGS, CRITERIA, REGRESSIONS
    from saesteer.methods.features.registry import choose

    groups: dict[str, tuple[type[Settings], str, Any]] = {
        "selection": (SelectionSettings, "criterion", CRITERIA),
        "clustering": (ClusteringSettings, "method", CLUSTERINGS),
        "regression": (RegressionSettings, "method", REGRESSIONS),
    }
    if setting not in groups or not isinstance(values, dict):
        return
    kind, named, known = groups[setting]
    place = f"method {method}: {setting}"
    parsed = parse_config(values, kind=kind, place=place)
    choose(known, getattr(parsed, named), field=f"{place}: {named}")
