"""Fitting at several sites at once: what is given at each, and the vector that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from saesteer.methods.fit_context import FitContext
from saesteer.methods.objective import SteeringObjective, Vector
from saesteer.models import Site
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.loading import load_sae
from saesteer.steering import SteeringVector
from saesteer.utils.errors import MismatchError, SteeringError


class Joint(NamedTuple):
    """What is fitted at several sites at once, or at one."""

    given: list[FitContext]  # site by site, the vector's own first
    objective: SteeringObjective  # gains and metric are of all sites, side by side


def joint(given: FitContext, also: Sequence[Sae | Site | str]) -> Joint:
    """Return what is fitted at the site and, beside it, at others.

    Args:
        given: What is fitted at the site of the vector itself.
        also: SAEs, or the names of SAEs or of sites.

    Raises:
        MismatchError: An SAE is not of the model, or two are at one site.
        SaeError, SiteError: There is no such SAE or site.
    """
    if not also:
        return Joint([given], given.objective)
    key = tuple(also)
    # What was read and differentiated at the sites serves every method that asks for the same.
    if key not in given.joint:
        contexts = [given, *(_beside(given, place) for place in also)]
        sites = [one.site for one in contexts]
        for number, site in enumerate(sites):
            if site in sites[:number]:
                raise MismatchError(
                    f"also: {_name(also[number - 1])} is at {site}, where another is; name each "
                    "site once."
                )
        objective = given.objective_at(
            sites,
            lambda raw: at_sites(contexts, raw, lambda one, part: one.vector(part, "linearised")),
        )
        given.joint[key] = Joint(contexts, objective)
    return given.joint[key]


def names_site(place: str) -> bool:
    """Whether it is a site's name, such as "blocks.15.hook_resid_post", and no SAE's."""
    return place.startswith("blocks.")


def _name(place: Sae | Site | str) -> str:
    return str(getattr(place, "name", place))


def _beside(given: FitContext, place: Sae | Site | str) -> FitContext:
    if isinstance(place, Site) or (isinstance(place, str) and names_site(place)):
        return given.beside(site=Site.parse(place))
    found = load_sae(place) if isinstance(place, str) else place
    check_compatible(given.model, found)
    given.progress.say(f"And at {found.write_site}, SAE {found.name}")
    return given.beside(sae=found)


def at_sites(
    given: Sequence[FitContext], raw: Vector, make: Callable[[FitContext, Vector], SteeringVector]
) -> SteeringVector:
    """Return the vector of what is added at each site, side by side; zeros at a site are no part.

    Raises:
        SteeringError: All is zero, or of several sites the first.
    """
    if len(given) == 1:
        return make(given[0], raw)
    own, *others = np.split(raw, len(given))
    if raw.any() and not own.any():
        raise SteeringError(
            f"nothing was fitted at {given[0].site}, in whose lengths strength is measured; allow "
            "more features, or fit at the other sites alone."
        )
    parts = [make(one, part) for one, part in zip(given[1:], others, strict=True) if part.any()]
    return replace(make(given[0], own), parts=tuple(parts))
