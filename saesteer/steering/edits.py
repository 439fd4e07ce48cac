"""Edits: what is changed at a site, along a vector's direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saesteer.steering.strength import Unit, check_strength, check_strengths, to_raw
from saesteer.utils.errors import SteeringError

if TYPE_CHECKING:
    from saesteer.steering.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """A change of what is read along a vector's unit direction v.

    With the reading alpha = x . v, what is written at each chosen position is
    x + (alpha' - alpha) v: everything orthogonal to v stays as it is.
    """

    # Gives v and the site; any steering vector will do.
    vector: SteeringVector
    # The first generated token that is changed, from 0; with 0 the prompt is changed too.
    first: int = field(default=0, kw_only=True)
    # The last one; None for no end.
    last: int | None = field(default=None, kw_only=True)
    # v, of unit length to the last digit.
    direction: Float[Tensor, " d_model"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = [n for n in (self.first, self.last) if n is not None]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in ends):
            raise SteeringError(
                f"tokens {self.first} to {self.last} are not whole numbers from 0; give such."
            )
        if self.last is not None and self.last < self.first:
            raise SteeringError(
                f"tokens {self.first} to {self.last} end before they begin; turn them round."
            )
        if self.vector.parts:
            raise SteeringError(
                f"an edit changes one site, and vector {self.vector.name!r} is at "
                f"{self.vector.place}; add it with steer, or edit along one of its pieces."
            )
        for name in ("scale", "centre", "value"):
            check_strength(getattr(self, name, 0.0), name)
        exact = self.vector.direction.detach().cpu().to(torch.float64)
        object.__setattr__(self, "direction", (exact / exact.norm()).to(torch.float32))

    @abstractmethod
    def target(self, reading: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
        """Return alpha' for each alpha."""

    @abstractmethod
    def _what(self) -> str:
        """Return what it does in a few words."""

    def __call__(
        self,
        hidden: Float[Tensor, "batch pos d_model"],
        where: Bool[Tensor, "#batch pos 1"] | None = None,
        reading: Float[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the hidden state with the edit made.

        Positions that are not chosen keep their very bits; all are chosen where none are given.
        The alpha that counts is the given one, or else what the hidden state reads.
        """
        direction = self.direction.to(hidden.device)
        x = hidden.to(torch.float32)
        alpha = x @ direction
        change = self.target(alpha if reading is None else reading) - alpha
        changed = (x + change[..., None] * direction).to(hidden.dtype)
        return changed if where is None else torch.where(where, changed, hidden)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return False

    @property
    def whole(self) -> bool:
        """Whether it lasts from the prompt to the end."""
        return self.first == 0 and self.last is None

    def covers(self, step: Tensor) -> Tensor:
        """Return which steps (see `SteeringMask.steps`) lie in its window."""
        # The prompt's own positions come before step 0 and belong to it.
        inside = step >= self.first if self.first else torch.ones_like(step, dtype=torch.bool)
        return inside if self.last is None else inside & (step <= self.last)

    def described(self) -> str:
        """Return it in a few words."""
        end = "on" if self.last is None else f"to {self.last}"
        window = "" if self.whole else f", tokens {self.first} {end}"
        return f"{self._what()} at layer {self.vector.site.layer}{window}"


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """Steering: alpha' = alpha + strength; a negative strength steers the other way.

    With n strengths and a batch of k * n rows, each strength takes k consecutive rows, in the order
    in which Hugging Face repeats rows for beams and for num_return_sequences.

    Example:
        >>> ss.Add(vector, 2.0, "raw").target(torch.tensor([3.0])).tolist()
        [5.0]
    """

    # One strength for all rows, or one per row of the batch (of `rows` if that is given).
    strength: float | Sequence[float] = 1.0
    # See `to_raw`.
    unit: Unit = "norm"
    # The batch rows to steer, from 0; all if None.
    rows: Sequence[int] | None = None
    # The strengths as L2 lengths.
    lengths: list[float] = field(init=False, repr=False)
    # By batch, dtype and device what is added to each row, and to which rows.
    _ready: dict[Any, tuple[Tensor, Tensor | None]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        strengths = check_strengths(self.strength)
        _check_rows(self.rows, len(strengths))
        lengths = [to_raw(strength, self.unit, self.vector) for strength in strengths]
        object.__setattr__(self, "lengths", lengths)

    def __call__(
        self,
        hidden: Float[Tensor, "batch pos d_model"],
        where: Bool[Tensor, "#batch pos 1"] | None = None,
        reading: Float[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the hidden state with the vector added; see `Edit`."""
        added, rows = self._added(hidden)
        if rows is not None:
            where = rows if where is None else where & rows
        if reading is not None:
            return super().__call__(hidden, where, reading)
        # Not a sum with zeros: an untouched position keeps its very bits.
        return hidden + added if where is None else torch.where(where, hidden + added, hidden)

    def target(self, reading: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
        """Return alpha + strength."""
        if len(self.lengths) == 1:
            return reading + self.lengths[0]
        index = self.row_strengths(len(reading))
        assert index is not None
        lengths = torch.tensor([*self.lengths, 0.0])[index].to(reading)
        return reading + lengths[:, None]

    @property
    def idle(self) -> bool:
        """Whether every strength is 0."""
        return not any(self.lengths)

    def row_strengths(self, batch: int) -> Tensor | None:
        """Return each row's strength by its place, -1 for none; None where one is for all rows."""
        count = len(self.lengths)
        if self.rows is not None:
            if max(self.rows) >= batch:
                raise SteeringError(
                    f"rows names row {max(self.rows)} and the batch has {batch}; rows count from 0."
                )
            index = torch.full((batch,), -1)
            index[list(self.rows)] = torch.arange(count) if count > 1 else 0
            return index
        if count == 1:
            return None
        if batch % count:
            raise SteeringError(
                f"{count} strengths do not fit a batch of {batch} rows; give one strength, or one "
                "per row."
            )
        return torch.arange(count).repeat_interleave(batch // count)

    def _added(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is added, [batch, 1, d_model], and the rows it is added to if not all."""
        key = (hidden.shape[0], hidden.dtype, hidden.device)
        if key in self._ready:
            return self._ready[key]
        scale = torch.tensor([*self.lengths, 0.0], dtype=torch.float32, device=hidden.device)
        added = scale[:, None] * self.vector.direction.to(hidden.device, torch.float32)
        index, rows = self.row_strengths(hidden.shape[0]), None
        if index is None:
            added = added[:1]
        else:
            added = added[index]
            steered = scale[index] != 0
            rows = None if bool(steered.all()) else steered[:, None, None]
        made = added[:, None].to(hidden.dtype), rows
        # A cached cast of a direction that is learnt would hold a graph that is freed.
        if not self.vector.direction.requires_grad:
            self._ready[key] = made
        return made

    def _what(self) -> str:
        strengths = self.strength if isinstance(self.strength, Sequence) else [self.strength]
        return f"add {', '.join(f'{s:+g}' for s in strengths)} {self.unit}"


@dataclass(frozen=True, eq=False)
class Flip(Edit):
    """The other side: alpha' = c - scale (alpha - c); a scale of 1 mirrors, more pushes harder.

    Example:
        >>> ss.Flip(vector).target(torch.tensor([3.0])).tolist()
        [-3.0]
    """

    scale: float = 1.0
    centre: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 0:
            raise SteeringError(
                f"flip has scale {self.scale:g}, which would not flip; give 0 or more, or use "
                "mode set or add."
            )

    def target(self, reading: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
        """Return c - scale (alpha - c)."""
        return self.centre - self.scale * (reading - self.centre)

    def _what(self) -> str:
        return f"flip x{self.scale:g}{_about(self.centre)}"


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Nothing is left along v: alpha' = c.

    Example:
        >>> ss.Ablate(vector).target(torch.tensor([3.0])).tolist()
        [0.0]
    """

    centre: float = 0.0

    def target(self, reading: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
        """Return c."""
        return torch.full_like(reading, self.centre)

    def _what(self) -> str:
        return f"ablate{_about(self.centre)}"


@dataclass(frozen=True, eq=False)
class Set(Edit):
    """One reading everywhere: alpha' = value.

    Example:
        >>> ss.Set(vector, 1.0).target(torch.tensor([3.0])).tolist()
        [1.0]
    """

    value: float = 0.0

    def target(self, reading: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
        """Return the value."""
        return torch.full_like(reading, self.value)

    def _what(self) -> str:
        return f"set to {self.value:.3g}"


def _about(centre: float) -> str:
    return f" about {centre:.3g}" if centre else ""


def _check_rows(rows: Sequence[int] | None, count: int) -> None:
    if rows is None:
        return
    whole = all(isinstance(r, int) and not isinstance(r, bool) and r >= 0 for r in rows)
    if not rows or not whole or len(set(rows)) != len(rows):
        raise SteeringError(
            f"rows {list(rows)!r} are not different row numbers from 0; give at least one."
        )
    if count not in (1, len(rows)):
        raise SteeringError(
            f"{count} strengths do not fit {len(rows)} rows; give one strength, or one per row."
        )
