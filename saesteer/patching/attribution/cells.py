"""From gradients and activation differences to one number per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.sites import Site
from saesteer.patching.attribution.runs import Ends, chosen_layers
from saesteer.patching.components import BY_COLUMN, check_component, hook_name
from saesteer.patching.engine.patches import at_columns, pattern_at_columns
from saesteer.patching.sae_patching import check_features, code_difference
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import Sae

HEADS = ("z", "q", "k", "v")
PATTERN = "pattern"
SAE = "sae"
NAN = float("nan")


@dataclass(frozen=True)
class SaeCells:
    """Which features of an SAE are cells.

    Attributes:
        sae: The SAE.
        features: The features that are cells of their own; all that differ somewhere if None.
        clusters: Features that are patched together, by label, instead of single features.
    """

    sae: Sae
    features: tuple[int, ...] | None = None
    clusters: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True)
class Wanted:
    """What is to be attributed.

    Attributes:
        components: The components.
        layers: The layers of all but "sae".
        by_position: Cells of heads, patterns and features by position too.
        sae: The features for "sae".
    """

    components: tuple[str, ...]
    layers: tuple[int, ...]
    by_position: bool = False
    sae: SaeCells | None = None

    def written(self, component: str) -> tuple[Site, ...]:
        """Return the sites of a component that patches change."""
        if component == SAE:
            assert self.sae is not None
            return (self.sae.sae.write_site,)
        return tuple(Site.parse(hook_name(component, layer)) for layer in self.layers)

    @property
    def gradients_at(self) -> tuple[Site, ...]:
        """Every site whose gradient is needed."""
        return tuple(dict.fromkeys(s for name in self.components for s in self.written(name)))

    @property
    def read_at(self) -> tuple[Site, ...]:
        """Every site whose activations are needed."""
        read = () if self.sae is None else (self.sae.sae.site,)
        return tuple(dict.fromkeys((*self.gradients_at, *read)))


def wanted(
    model: TransformerBridge,
    components: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    by_position: bool = False,
    sae: Sae | None = None,
    features: Sequence[int] | None = None,
    clusters: Mapping[str, Sequence[int]] | None = None,
) -> Wanted:
    """Check what is asked for.

    Raises:
        ConfigError: A component, layer, feature or cluster does not exist, or "sae" has no SAE.
    """
    names = tuple(dict.fromkeys(components))
    if not names:
        raise ConfigError("components: there is none to attribute; give one such as resid_pre.")
    for name in names:
        check_component(name)
    if SAE not in names:
        return Wanted(names, chosen_layers(model, layers), by_position)
    if sae is None:
        raise ConfigError("component 'sae' needs an SAE; give one (sae:).")
    groups = {f"cluster {name}": members for name, members in (clusters or {}).items()}
    if clusters is None and features is not None:
        groups = {"features": features}
    for label, members in groups.items():
        check_features(sae, members, label)
    chosen = None if features is None else tuple(dict.fromkeys(features))
    cells = SaeCells(sae, chosen, clusters)
    return Wanted(names, chosen_layers(model, layers), by_position, cells)


@dataclass(frozen=True)
class Slopes:
    """Activations at both ends of the patch and the metric's slope between them.

    Attributes:
        ends: The prompts.
        destination: The patched run's activations by site.
        source: The source run's activations, in the source's own columns.
        slope: Gradients of the metric by site, in the destination's columns.
        start: The metric of the destination, unpatched.
        goal: The metric of the source.
    """

    ends: Ends
    destination: Mapping[Site, Tensor]
    source: Mapping[Site, Tensor]
    slope: Mapping[Site, Tensor]
    start: Float[Tensor, " pair"]
    goal: Float[Tensor, " pair"]

    def change(self, site: Site) -> Float[Tensor, "pair pos ..."]:
        """Return source less destination at the destination's columns, 0 where none stands."""
        sides = self.ends.sides
        moved = at_columns(self.source[site].float(), sides.to_source)
        both = moved - self.destination[site].float()
        return torch.where(sides.allowed[:, :, None], both, 0.0)


def cell_values(
    wanted: Wanted, component: str, slopes: Slopes, *, d_head: int
) -> Float[np.ndarray, "pair ..."]:
    """Return the first-order value of the metric for every cell of a component.

    A cell's value is m + g . (source - destination), with m the metric of the destination and g
    its gradient with respect to the activation (Nanda 2023, "Attribution Patching"; Kramár et al.
    2024, "AtP*").

    Args:
        wanted: What is asked for.
        component: One of its components.
        slopes: What the runs gave.
        d_head: The width of a head.

    Returns:
        [pair, layer, position], [pair, layer, head(, position)] or [pair, feature(, position)];
        NaN at positions that cannot be patched.
    """
    if component == SAE:
        assert wanted.sae is not None
        found = _feature_cells(wanted.sae, slopes, by_position=wanted.by_position)
    else:
        layers = []
        for site in wanted.written(component):
            if component == PATTERN:
                by_place = _pattern_cells(slopes, site)
            else:
                width = d_head if component in HEADS else None
                by_place = _vector_cells(slopes, site, width)
            layers.append(by_place if wanted.by_position else _over_positions(component, by_place))
        found = torch.stack(layers, dim=1)
    if component in BY_COLUMN or wanted.by_position:
        found = _only_there(found, slopes.ends)
    start = slopes.start.reshape(-1, *(1,) * (found.ndim - 1))
    return (start + found).double().cpu().numpy()


def _over_positions(component: str, by_place: Tensor) -> Tensor:
    return by_place if component in BY_COLUMN else by_place.sum(dim=-1)


def _only_there(found: Tensor, ends: Ends) -> Tensor:
    there = ends.sides.allowed.reshape(len(found), *(1,) * (found.ndim - 2), found.shape[-1])
    return torch.where(there, found, NAN)


def _vector_cells(slopes: Slopes, site: Site, width: int | None) -> Tensor:
    """Return [pair, position], or [pair, head, position] where a head's width is given."""
    products = slopes.slope[site].float() * slopes.change(site)
    if width is None:
        return products.sum(dim=-1)
    return products.unflatten(-1, (-1, width)).sum(dim=-1).transpose(1, 2)


def _pattern_cells(slopes: Slopes, site: Site) -> Float[Tensor, "pair head query"]:
    change = pattern_change(slopes.ends, slopes.source[site], slopes.destination[site])
    return (slopes.slope[site].float() * change).sum(dim=-1)


def pattern_change(
    ends: Ends, source: Float[Tensor, "pair head query key"], destination: Tensor
) -> Float[Tensor, "pair head query key"]:
    """Return the source's attention less the destination's, at the destination's columns.

    A query with a counterpart takes its counterpart's row: the attention to keys that have a
    counterpart, and none to the others. A query without one keeps its own.
    """
    sides = ends.sides
    moved = pattern_at_columns(source.float(), sides.to_source) - destination.float()
    return torch.where(sides.allowed[:, None, :, None], moved, 0.0)


def _feature_cells(cells: SaeCells, slopes: Slopes, *, by_position: bool) -> Tensor:
    """Return [pair, feature or cluster] or [pair, feature or cluster, position]."""
    site, sides = cells.sae.site, slopes.ends.sides
    change = code_difference(
        cells.sae,
        slopes.source[site].flatten(2),
        slopes.destination[site].flatten(2),
        sides.source_mask,
        sides.mask,
        sides.to_source,
        sides.fresh,
    )
    slope = slopes.slope[cells.sae.write_site].flatten(2).float()
    decoder = cells.sae.decoder.to(slope.device)
    groups = cells.clusters
    if groups is None and cells.features is not None:
        change, decoder = change[..., list(cells.features)], decoder[list(cells.features)]
    products = change * (slope @ decoder.T)
    if groups is not None:
        members = [products[..., list(dict.fromkeys(g))].sum(dim=-1) for g in groups.values()]
        products = torch.stack(members, dim=-1)
    return products.transpose(1, 2) if by_position else products.sum(dim=1)
