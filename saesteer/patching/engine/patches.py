"""What a patch writes: the source run's activations in the destination's columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.patching.engine.rows import Touched

Own = Float[Tensor, "row pos width"]


class Patch(Protocol):
    """Changes a component in some rows.

    Attributes:
        component: Which component.
    """

    @property
    def component(self) -> str: ...

    def edited(self, now: Own, rows: Touched, layer: int, first: int) -> Own:
        """Return a component's values after the patch.

        Args:
            now: Its values in a window of columns.
            rows: The rows that they belong to.
            layer: The layer.
            first: The window's first column.
        """
        ...


@dataclass(frozen=True)
class CopyPatch:
    """Replaces a component's values, of whole columns or of one head.

    Attributes:
        component: Which component.
        values: For every layer the source's values at the destination's columns.
        allowed: The columns that have a counterpart in the source.
        heads: How many heads the values are of; None to replace whole columns.
    """

    component: str
    values: dict[int, Float[Tensor, "pair pos width"]]
    allowed: Bool[Tensor, "pair pos"]
    heads: int | None = None

    def edited(self, now: Own, rows: Touched, layer: int, first: int) -> Own:
        """Return a component's values after the patch; see `Patch`."""
        width = now.shape[1]
        source = self.values[layer][rows.pair, first : first + width]
        taken = rows.taken(self.allowed, first, width)[:, :, None]
        if self.heads is not None:
            head = torch.arange(self.heads, device=now.device)
            own = (head == rows.label[:, None]).repeat_interleave(now.shape[-1] // self.heads, 1)
            taken = taken & own[:, None]
        return torch.where(taken, source, now)


@dataclass(frozen=True)
class PatternPatch:
    """Replaces one head's attention pattern, destination row by destination row.

    Attributes:
        values: For every layer the source's pattern at the destination's columns: 0 where the
            source has no such key.
        allowed: The columns that have a counterpart in the source.
        component: "pattern".
    """

    values: dict[int, Float[Tensor, "pair head query key"]]
    allowed: Bool[Tensor, "pair pos"]
    component: str = "pattern"

    def edited(
        self, now: Float[Tensor, "row head query key"], rows: Touched, layer: int, first: int
    ) -> Float[Tensor, "row head query key"]:
        """Return the pattern after the patch; see `Patch`."""
        width, keys = now.shape[2:]
        source = self.values[layer][rows.pair, :, first : first + width, :keys]
        taken = rows.taken(self.allowed, first, width)[:, None, :, None]
        head = torch.arange(now.shape[1], device=now.device)
        own = (head == rows.label[:, None])[:, :, None, None]
        return torch.where(taken & own, source, now)


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
