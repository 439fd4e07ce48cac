"""Checks of what activation patching is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saesteer.patching.components import (
    BY_COLUMN,
    BY_HEAD,
    check_component,
    check_there,
    component_of,
    heads_of,
)
from saesteer.patching.engine.prepare import What
from saesteer.patching.prompts.batch import PairBatch
from saesteer.patching.sae_patching import Clusters
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def checked_what(
    model: TransformerBridge,
    component: str,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    features: Sequence[int] | None,
    clusters: Clusters | None,
    sae: Sae | None,
) -> What:
    """Return what is patched, checked against the model.

    Raises:
        ConfigError: A name or number is unknown, or does not go with the component.
        MismatchError: The SAE belongs to another model.
        SiteError: The model has no such site as the SAE's.
    """
    check_component(component)
    given = {"sae": sae, "features": features, "clusters": clusters}
    for name, value in given.items():
        if component != "sae" and value is not None:
            raise ConfigError(
                f"{name}: component {component!r} has no features; leave {name} out or use "
                "component 'sae'."
            )
    if heads is not None and component not in BY_HEAD:
        raise ConfigError(
            f"heads: component {component!r} has none; leave heads out or use one of z, q, k, v "
            "and pattern."
        )
    if component == "sae":
        if sae is None:
            raise ConfigError("sae: component 'sae' needs an SAE; give one.")
        if features is not None and clusters is not None:
            raise ConfigError("features and clusters exclude each other; give one of the two.")
        if clusters is not None and not clusters:
            raise ConfigError("clusters: there is no cluster; name at least one.")
        check_compatible(model, sae)
        own = (sae.write_site.layer,)
        if layers is not None and tuple(layers) != own:
            raise ConfigError(
                f"layers: SAE {sae.name} writes at layer {own[0]} alone; leave layers out."
            )
        for site in (sae.site, sae.write_site):
            check_there(model, component_of(site), (site.layer,))
        chosen = None if features is None else tuple(int(f) for f in features)
        return What(component, own, sae, chosen, clusters)
    if heads is not None:
        _in_range("heads", heads, heads_of(model, component))
    count = int(model.cfg.n_layers)
    numbers = range(count) if layers is None else layers
    chosen_layers = _in_range("layers", numbers, count)
    check_there(model, component, chosen_layers)
    return What(component, chosen_layers)


def checked_columns(
    batch: PairBatch, component: str, positions: Sequence[int] | None, by_position: bool
) -> Int[np.ndarray, " position"] | None:
    """Return the columns to patch one at a time; None to patch all of them together.

    Raises:
        ConfigError: A position is past the prompts' width, or positions are given for a patch of
            all of them.
    """
    if component not in BY_COLUMN and not by_position:
        if positions is not None:
            raise ConfigError(
                f"positions: component {component!r} is patched at all of them; add "
                "by_position=True to patch one at a time."
            )
        return None
    numbers = range(batch.width) if positions is None else positions
    return np.asarray(_in_range("positions", numbers, batch.width), dtype=np.int64)


def _in_range(name: str, numbers: Sequence[int], count: int) -> tuple[int, ...]:
    if not len(numbers):
        raise ConfigError(f"{name}: there is none; name at least one of 0 to {count - 1}.")
    chosen = tuple(int(number) for number in numbers)
    for number in chosen:
        if not 0 <= number < count:
            raise ConfigError(f"{name}: {number} is not there; choose from 0 to {count - 1}.")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{name}: a number stands there twice; name each once.")
    return chosen
