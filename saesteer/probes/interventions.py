"""What to do to what the probes read, as people write it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.probes.probe import ProbeSet
from saesteer.steering import Ablate, Add, Edit, Flip, Set, SteeringVector, Unit, intervene
from saesteer.steering.apply import Policy
from saesteer.steering.strength import check_strength
from saesteer.utils.errors import SteeringError
from saesteer.utils.text import did_you_mean, spoken_list

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MODES = ("flip", "ablate", "add", "set")
# With its five neighbours below, the best layer is what is intervened on unless layers are named.
SPAN = 6
_WINDOW = re.compile(r"(\d+)-(\d*):(.+)")


@dataclass(frozen=True)
class Intervention:
    """Edits together with how they are carried out; see `intervene`."""

    edits: tuple[Edit, ...]
    policy: Policy = "once"
    positions: str | None = None

    def made_on(
        self, model: TransformerBridge, prompt_length: Int[Tensor, " row"] | None = None
    ) -> AbstractContextManager[Any]:
        """Return the `with` block that makes them."""
        how: Any = {"policy": self.policy, "positions": self.positions}
        return intervene(model, self.edits, **how, prompt_length=prompt_length)

    def scaled(self, factor: float) -> Intervention:
        """Return it with every strength and scale times a factor."""
        edits = []
        for edit in self.edits:
            if isinstance(edit, Add):
                edit = replace(edit, strength=cast(float, edit.strength) * factor)
            elif isinstance(edit, Flip):
                edit = replace(edit, scale=edit.scale * factor)
            edits.append(edit)
        return replace(self, edits=tuple(edits))

    def randomised(self, draw: int) -> Intervention:
        """Return the same along random directions, one for each site.

        What cannot be scaled to another cost (ablate, set) becomes a flip.
        """
        generator = torch.Generator().manual_seed(draw)
        made: dict[Any, SteeringVector] = {}
        edits: list[Edit] = []
        for edit in self.edits:
            vector = edit.vector
            if vector.site not in made:
                raw = torch.randn(vector.d_model, generator=generator)
                made[vector.site] = replace(
                    vector,
                    direction=raw / raw.norm(),
                    name=f"random {draw}",
                    method="random_direction",
                    sae_features=(),
                    provenance={},
                )
            own = made[vector.site]
            if isinstance(edit, Add):
                edits.append(replace(edit, vector=own))
            else:
                # A random direction has no classes to be centred between.
                scale = edit.scale if isinstance(edit, Flip) else 1.0
                edits.append(Flip(own, scale, first=edit.first, last=edit.last))
        return replace(self, edits=tuple(edits))

    def intended(
        self, labels: Sequence[str | None], towards: str, away: str
    ) -> Float[np.ndarray, " prompt"]:
        """Return for each prompt 1 where its reading is meant to rise, -1 to fall, 0 for neither.

        A flip or ablation is meant to bring a prompt away from its own side; add and set mean the
        same for every prompt that has a side; a schedule has no one intention.
        """
        own = np.array([{towards: 1.0, away: -1.0}.get(label or "", 0.0) for label in labels])
        first = self.edits[0]
        if any(not edit.whole for edit in self.edits):
            return np.zeros(len(own))
        if isinstance(first, Flip | Ablate):
            return -own
        pull = first.value if isinstance(first, Set) else cast(Add, first).lengths[0]
        if isinstance(first, Set) and "class_alphas" in first.vector.provenance:
            pull -= class_alpha(first.vector, "midpoint")
        return np.where(own != 0, np.sign(pull), 0.0)


def make_intervention(
    vectors: Sequence[SteeringVector],
    *,
    mode: str = "flip",
    amount: str | float | None = None,
    unit: Unit = "norm",
    centre: str | float = 0.0,
    schedule: str | None = None,
    compound: bool = False,
    positions: str | None = "all",
) -> Intervention:
    """Return what is done at all of some vectors' sites.

    Args:
        amount: Scale (flip), strength (add), or reading (set): a number, or a class's name for its
            mean reading.
        centre: What flip and ablate are about: a number, a class or "midpoint".
        schedule: Windows of generated tokens, both ends included, instead of one mode, such as
            "0-15:set=negative,16-:set=positive" or "0-15:flip=2,16-:add=-0.2".
        compound: Whether later layers see what earlier ones did.
    """
    policy: Policy = "compound" if compound else "once"
    if schedule is None:
        edits = [_edit(vector, mode, amount, unit, centre) for vector in vectors]
        return Intervention(tuple(edits), policy, positions)
    edits, windows = [], []
    for part in schedule.split(","):
        match = _WINDOW.fullmatch(part.strip())
        if match is None:
            raise SteeringError(
                f"schedule part {part.strip()!r} is not of the form 0-15:set=negative; write it so."
            )
        first, last = int(match[1]), int(match[2]) if match[2] else None
        end = float("inf") if last is None else last
        if any(first <= b and a <= end for a, b in windows):
            raise SteeringError(
                f"schedule {schedule!r}: the windows overlap at token {first}; let each begin "
                "after the one before it."
            )
        windows.append((first, end))
        own, _, value = match[3].partition("=")
        for vector in vectors:
            edit = _edit(vector, own.strip(), value.strip() or None, unit, centre)
            edits.append(replace(edit, first=first, last=last))
    return Intervention(tuple(edits), policy, positions)


def _edit(
    vector: SteeringVector,
    mode: str,
    amount: str | float | None,
    unit: Unit,
    centre: str | float,
) -> Edit:
    if mode not in MODES:
        raise SteeringError(
            f"mode {mode!r}{did_you_mean(mode, MODES)} is unknown; use one of {spoken_list(MODES)}."
        )
    if amount is None and mode in ("add", "set"):
        raise SteeringError(f"mode {mode} needs an amount; give a number, or a class for set.")
    value = 1.0 if amount is None else _amount(amount, vector)
    if mode == "add":
        return Add(vector, value, unit)
    if mode == "set":
        return Set(vector, value)
    about = _amount(centre, vector)
    return Flip(vector, value, about) if mode == "flip" else Ablate(vector, about)


def _amount(text: str | float, vector: SteeringVector) -> float:
    try:
        return check_strength(float(text))
    except ValueError:
        return class_alpha(vector, str(text))


def class_alpha(vector: SteeringVector, name: str) -> float:
    """Return a class's mean reading along a probe's vector; "midpoint" is between its two ends."""
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


def parse_layers(text: str | None, probes: ProbeSet) -> list[int]:
    """Read layers such as "14", "9-14" or "4,8,12"; the best and the five before it for None."""
    if text is None:
        have = [probe.site.layer for probe in probes.probes]
        return [layer for layer in have if probes.best - SPAN < layer <= probes.best]
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise SteeringError(
                f"layers {text!r} are not of the form 14, 9-14 or 4,8,12; write them so."
            )
        layers += range(int(first), int(last or first) + 1)
    for layer in layers:
        probes.layer(layer)
    if not layers or len(set(layers)) < len(layers):
        raise SteeringError(f"layers {text!r} name none or one twice; name each once.")
    return sorted(layers)
