"""What a patch writes: the source run's activations in the destination's columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.patching.batch import Direction
from saesteer.patching.engine.rows import Touched
from saesteer.patching.target import Target
from saesteer.saes.adapter import Sae

Own = Float[Tensor, "row pos width"]
Labels = tuple[int | str, ...]


@dataclass
class Patch(ABC):
    """Changes a component in some rows."""

    # Where the destination's columns have a counterpart.
    allowed: Bool[Tensor, "pair pos"]
    # Heads, features or clusters; empty where whole columns are patched.
    labels: Labels
    # For every pair, column and label (one for all where patches do not tell them apart) whether
    # the patch can change anything there.
    alive: Bool[np.ndarray, "pair pos #label"]

    @abstractmethod
    def edited(self, now: Own, rows: Touched, layer: int, first: int) -> Own:
        """Return a component's values after the patch, in a window of columns from `first` on."""


@dataclass
class CopyPatch(Patch):
    """Replaces a component's values: of whole columns, of one head, or of one head's pattern."""

    # For every layer the source's values at the destination's columns, [pair, pos, width], or its
    # pattern there, [pair, head, query, key].
    values: dict[int, Tensor]

    def edited(self, now: Own, rows: Touched, layer: int, first: int) -> Own:
        """Return a component's values after the patch; a pattern's query by query."""
        head = torch.arange(len(self.labels), device=now.device)
        own = head == rows.label[:, None]
        if now.ndim == 4:
            width, keys = now.shape[2:]
            source = self.values[layer][rows.pair, :, first : first + width, :keys]
            taken = rows.taken(self.allowed, first, width)[:, None, :, None]
            return torch.where(taken & own[:, :, None, None], source, now)
        width = now.shape[1]
        source = self.values[layer][rows.pair, first : first + width]
        taken = rows.taken(self.allowed, first, width)[:, :, None]
        if self.labels:
            each = now.shape[-1] // len(self.labels)
            taken = taken & own.repeat_interleave(each, dim=1)[:, None]
        return torch.where(taken, source, now)


@dataclass
class SaePatch(Patch):
    """Adds a feature's difference between the runs times its decoder row: the SAE's error stays."""

    # Source less destination code at the destination's columns, of the features that are used.
    difference: Float[Tensor, "pair pos feature"]
    decoder: Float[Tensor, "feature width"]
    # For every label the features that are patched together; None where each is its own.
    members: tuple[Int[Tensor, " member"], ...] | None

    def edited(self, now: Own, rows: Touched, layer: int, first: int) -> Own:
        """Return the component's values after the patch."""
        width = now.shape[1]
        taken = rows.taken(self.allowed, first, width)
        window = self.difference[:, first : first + width]
        if self.members is None:
            codes = window[rows.pair, :, rows.label] * taken
            return (now + codes[..., None] * self.decoder[rows.label][:, None]).to(now.dtype)
        change = torch.zeros(now.shape, dtype=torch.float32, device=now.device)
        for label in rows.label.unique().tolist():
            own, which = rows.label == label, self.members[label]
            change[own] = window[rows.pair[own]][..., which] @ self.decoder[which]
        return (now + change * taken[..., None]).to(now.dtype)


def make_patch(
    target: Target,
    direction: Direction,
    source: Mapping[int, Tensor],
    own: Mapping[int, Tensor],
    heads: int,
) -> Patch:
    """Make a patch from a component's activations in both runs, by layer.

    Args:
        target: What is patched.
        direction: The prompts.
        source: The component in the source run.
        own: The same in the destination run; needed for SAE features alone.
        heads: How many heads the component has; 0 for whole columns.
    """
    if target.sae is not None:
        layer = target.sae.site.layer
        difference = code_difference(target.sae, source[layer], own[layer], direction)
        return _sae_patch(target, target.sae, difference, direction.allowed)
    at = pattern_at_columns if target.component == "pattern" else at_columns
    values = {layer: at(one, direction.to_source) for layer, one in source.items()}
    alive = direction.fresh[:, :, None].cpu().numpy()
    return CopyPatch(direction.allowed, tuple(range(heads)), alive, values)


def _sae_patch(
    target: Target, sae: Sae, difference: Float[Tensor, "pair pos d_sae"], allowed: Tensor
) -> SaePatch:
    members, labels = None, target.features or ()
    if target.clusters is not None:
        used = sorted({int(f) for group in target.clusters.values() for f in group})
        at = {feature: place for place, feature in enumerate(used)}
        members = tuple(
            torch.tensor([at[f] for f in dict.fromkeys(map(int, group))], device=difference.device)
            for group in target.clusters.values()
        )
        labels = tuple(target.clusters)
    else:
        if target.features is None:
            labels = tuple((difference != 0).flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist())
        used = [int(label) for label in labels]
    difference, decoder = difference[..., used], sae.decoder[used].to(difference)
    alive = difference != 0
    if members is not None:
        alive = torch.stack([alive[..., which].any(dim=-1) for which in members], dim=-1)
    return SaePatch(allowed, labels, alive.cpu().numpy(), difference, decoder, members)


def code_difference(
    sae: Sae,
    source: Float[Tensor, "pair pos d_in"],
    destination: Float[Tensor, "pair pos d_in"],
    direction: Direction,
) -> Float[Tensor, "pair pos d_sae"]:
    """Return what every feature's code differs by, source less destination.

    Columns where the two runs cannot differ give exactly 0.
    """
    theirs = at_columns(_codes(sae, source, direction.source_mask), direction.to_source)
    own = _codes(sae, destination, direction.mask)
    return (theirs - own) * direction.fresh[..., None]


def _codes(sae: Sae, activations: Tensor, mask: Tensor) -> Float[Tensor, "pair pos d_sae"]:
    codes = torch.zeros((*mask.shape, sae.d_sae), device=activations.device)
    for pair, real in enumerate(mask):
        codes[pair, real] = sae.encode(activations[pair, real]).to(codes)
    return codes


def at_columns(
    values: Float[Tensor, "pair pos width"], to_source: Int[Tensor, "pair pos"]
) -> Float[Tensor, "pair pos width"]:
    """Return a source's values at the destination's columns; columns without one hold anything."""
    index = to_source.clamp(min=0)[:, :, None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)


def pattern_at_columns(
    pattern: Float[Tensor, "pair head query key"], to_source: Int[Tensor, "pair pos"]
) -> Float[Tensor, "pair head query key"]:
    """Return a source's pattern at the destination's columns, 0 at keys that it does not have."""
    index = to_source.clamp(min=0)
    pair = torch.arange(len(index), device=index.device)[:, None, None]
    moved = pattern.transpose(1, 3)[pair, index[:, None, :], index[:, :, None]]
    known = (to_source >= 0)[:, None, None, :]
    return torch.where(known, moved.permute(0, 3, 1, 2), 0)
