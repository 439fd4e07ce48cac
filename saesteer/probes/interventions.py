"""What to do to a reading: flip, ablate, add or set it, where and for how long."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.data.checks import did_you_mean, spoken_list
from saesteer.steering import SteeringVector, Unit, to_raw
from saesteer.steering.strength import check_strength, check_unit
from saesteer.utils.errors import SteeringError

Mode = Literal["flip", "ablate", "add", "set"]
MODES: tuple[Mode, ...] = get_args(Mode)
_WINDOW = re.compile(r"(\d+)-(\d*):(.+)")


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change of the residual stream along a unit direction v.

    With alpha = x . v and c the centre, what is written at each position is x + (alpha' - alpha) v:

        flip     alpha' = c - amount * (alpha - c)   the other side; 1 mirrors, more pushes harder
        ablate   alpha' = c                          nothing is left along v
        add      alpha' = alpha + amount             towards v; a negative amount away from it
        set      alpha' = amount                     one reading everywhere

    Everything orthogonal to v stays as it is. The centre is 0 unless one is given.

    Attributes:
        vector: Gives v and the site; any steering vector will do.
        mode: Which of the four.
        amount: Scale (flip), strength in `unit` (add) or the reading itself (set); ablate has none.
        unit: The unit of an added strength.
        centre: What flip mirrors about and ablate leaves.
        first: The first generated token that is changed, from 0; see `steps`.
        last: The last one; None for no end.
    """

    vector: SteeringVector
    mode: Mode = "flip"
    amount: float = 1.0
    unit: Unit = "norm"
    centre: float = 0.0
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SteeringError(
                f"mode {self.mode!r}{did_you_mean(str(self.mode), MODES)} is unknown; use one of "
                f"{spoken_list(MODES)}."
            )
        check_strength(self.amount)
        check_strength(self.centre)
        check_unit(self.unit)
        if self.mode == "flip" and self.amount < 0:
            raise SteeringError(
                f"flip has scale {self.amount:g}, which would not flip; give 0 or more, or use "
                "mode set or add."
            )
        if self.mode == "add":
            to_raw(self.amount, self.unit, self.vector)
        whole = [n for n in (self.first, self.last) if n is not None]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in whole):
            raise SteeringError(
                f"tokens {self.first} to {self.last} are not whole numbers from 0; give such."
            )
        if self.last is not None and self.last < self.first:
            raise SteeringError(
                f"tokens {self.first} to {self.last} end before they begin; turn them round."
            )

    @property
    def whole(self) -> bool:
        """Whether it lasts from the prompt to the end."""
        return self.first == 0 and self.last is None

    def target(self, alpha: Float[Tensor, "*pos"]) -> Float[Tensor, "*pos"]:
        """Return alpha' for each alpha, by the table above."""
        if self.mode == "flip":
            return self.centre - self.amount * (alpha - self.centre)
        if self.mode == "ablate":
            return torch.full_like(alpha, self.centre)
        if self.mode == "add":
            return alpha + to_raw(self.amount, self.unit, self.vector)
        return torch.full_like(alpha, self.amount)

    def covers(self, step: Tensor) -> Tensor:
        """Return which steps (see `StepMask.steps`) lie in its window."""
        inside = step >= self.first
        if self.first == 0:
            # The prompt's own positions come before step 0 and belong to it.
            inside = torch.ones_like(inside)
        return inside if self.last is None else inside & (step <= self.last)

    def described(self) -> str:
        """Return it in a few words."""
        amount = {
            "flip": f" x{self.amount:g}",
            "ablate": "",
            "add": f" {self.amount:+g} {self.unit}",
            "set": f" to {self.amount:.3g}",
        }[self.mode]
        centre = f" about {self.centre:.3g}" if self.centre else ""
        end = "on" if self.last is None else f"to {self.last}"
        window = "" if self.whole else f", tokens {self.first} {end}"
        return f"{self.mode}{amount}{centre} at layer {self.vector.site.layer}{window}"


def class_alpha(vector: SteeringVector, name: str) -> float:
    """Return a class's mean reading along a probe's vector; "midpoint" is between its two ends.

    Raises:
        SteeringError: The vector holds no such class.
    """
    known = vector.provenance.get("class_alphas")
    if not isinstance(known, Mapping):
        raise SteeringError(
            f"vector {vector.name!r} does not say where its classes lie; give a number instead of "
            f"{name!r}, or a vector from a probe."
        )
    alphas = cast("Mapping[str, float]", known)
    if name == "midpoint" and name not in alphas:
        ends = [str(vector.provenance[end]) for end in ("towards", "away")]
        return sum(float(alphas[end]) for end in ends) / 2
    if name not in alphas:
        raise SteeringError(
            f"class {name!r}{did_you_mean(name, list(alphas))} is unknown to vector "
            f"{vector.name!r}; use a number, midpoint or {spoken_list(list(alphas))}."
        )
    return float(alphas[name])


def amount_of(text: str | float, vector: SteeringVector) -> float:
    """Return an amount written as a number or as a class's name."""
    try:
        return check_strength(float(text))
    except ValueError:
        return class_alpha(vector, str(text))


def parse_schedule(
    text: str, vectors: Sequence[SteeringVector], *, unit: Unit = "norm", centre: str | float = 0.0
) -> tuple[Intervention, ...]:
    """Read a schedule such as "0-15:set=negative,16-:set=positive" or "0-15:flip=2,16-:add=-0.2".

    Args:
        text: Windows of generated tokens, both ends included, each with a mode and an amount; an
            open end lasts.
        vectors: One per layer; every window takes place at all of them.
        unit: The unit of added strengths.
        centre: What flip and ablate are about; a number, a class or "midpoint".

    Raises:
        SteeringError: It is not of that form, or two windows overlap.
    """
    made: list[Intervention] = []
    windows: list[tuple[int, float]] = []
    for part in text.split(","):
        match = _WINDOW.fullmatch(part.strip())
        if match is None:
            raise SteeringError(
                f"schedule part {part.strip()!r} is not of the form 0-15:set=negative; write it so."
            )
        first, last = int(match[1]), int(match[2]) if match[2] else None
        mode, _, amount = match[3].partition("=")
        end = float("inf") if last is None else last
        if any(first <= b and a <= end for a, b in windows):
            raise SteeringError(
                f"schedule {text!r}: the windows overlap at token {first}; let each begin after "
                "the one before it."
            )
        windows.append((first, end))
        for vector in vectors:
            made.append(
                make_intervention(
                    vector, mode.strip(), amount.strip() or None, unit=unit, centre=centre
                )
            )
            made[-1] = replace(made[-1], first=first, last=last)
    return tuple(made)


def make_intervention(
    vector: SteeringVector,
    mode: str,
    amount: str | float | None = None,
    *,
    unit: Unit = "norm",
    centre: str | float = 0.0,
) -> Intervention:
    """Return an intervention whose amount and centre may be named by class.

    Raises:
        SteeringError: The mode is unknown, or lacks its amount.
    """
    if amount is None and mode in ("add", "set"):
        raise SteeringError(f"mode {mode} needs an amount; give a number, or a class for set.")
    value = 1.0 if amount is None else amount_of(amount, vector)
    return Intervention(
        vector, cast(Mode, mode), value, unit=unit, centre=amount_of(centre, vector)
    )
