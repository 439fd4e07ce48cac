"""From what is to be patched, and the activations of both runs, to the patch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from saesteer.patching.components import BY_HEAD, component_of
from saesteer.patching.engine.patches import (
    CopyPatch,
    Patch,
    PatternPatch,
    at_columns,
    pattern_at_columns,
)
from saesteer.patching.engine.sides import Sides
from saesteer.patching.sae_patching import Clusters, SaePatch, chosen_labels, code_difference
from saesteer.saes.adapter import Sae


@dataclass(frozen=True)
class What:
    """What is patched.

    Attributes:
        component: One of `COMPONENTS`.
        layers: At which layers.
        sae: The SAE whose features are patched.
        features: Its features to patch one by one.
        clusters: Or features to patch together, by name.
    """

    component: str
    layers: tuple[int, ...]
    sae: Sae | None = None
    features: tuple[int, ...] | None = None
    clusters: Clusters | None = None

    @property
    def has_heads(self) -> bool:
        """Whether heads are patched one by one."""
        return self.component in BY_HEAD

    @property
    def read_component(self) -> str:
        """Which component of the unpatched runs the patch is made from."""
        return self.component if self.sae is None else component_of(self.sae.site)

    @property
    def components(self) -> tuple[str, ...]:
        """Which components are read and written."""
        if self.sae is None:
            return (self.component,)
        return component_of(self.sae.site), component_of(self.sae.write_site)

    @property
    def read_layers(self) -> tuple[int, ...]:
        """At which layers it is read."""
        return self.layers if self.sae is None else (self.sae.site.layer,)


@dataclass(frozen=True)
class Prepared:
    """A patch ready to run.

    Attributes:
        patch: The patch.
        labels: Heads, features or clusters; empty where whole columns are patched.
        alive: For every pair, column and label (one for all where patches do not tell them apart)
            whether the patch can change anything there.
    """

    patch: Patch
    labels: tuple[int | str, ...]
    alive: Bool[np.ndarray, "pair pos #label"]


def make_patch(
    what: What,
    sides: Sides,
    source: Mapping[int, Tensor],
    own: Mapping[int, Tensor],
    heads: int | None,
) -> Prepared:
    """Make the patch.

    Args:
        what: What is patched.
        sides: The prompts.
        source: The component in the source run at every layer.
        own: The same in the destination run; needed for SAE features alone.
        heads: How many heads the component has; None for whole columns.

    Raises:
        ConfigError: A feature is not in the SAE.
    """
    if what.sae is not None:
        return _sae_patch(what, what.sae, sides, source, own)
    alive = sides.fresh[:, :, None].cpu().numpy()
    labels = () if heads is None else tuple(range(heads))
    patch: Patch
    if what.component == "pattern":
        moved = {i: pattern_at_columns(v, sides.to_source) for i, v in source.items()}
        patch = PatternPatch(moved, sides.allowed)
    else:
        moved = {i: at_columns(v, sides.to_source) for i, v in source.items()}
        patch = CopyPatch(what.component, moved, sides.allowed, heads)
    return Prepared(patch, labels, alive)


def _sae_patch(
    what: What, sae: Sae, sides: Sides, source: Mapping[int, Tensor], own: Mapping[int, Tensor]
) -> Prepared:
    difference = code_difference(
        sae,
        source[sae.site.layer],
        own[sae.site.layer],
        sides.source_mask,
        sides.mask,
        sides.to_source,
        sides.fresh,
    )
    labels, used, members = chosen_labels(sae, difference, what.features, what.clusters)
    decoder = sae.decoder[used].to(difference)
    patch = SaePatch(component_of(sae.write_site), difference[..., used], decoder, members)
    return Prepared(patch, labels, patch.alive().cpu().numpy())
