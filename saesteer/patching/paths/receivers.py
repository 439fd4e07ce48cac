"""Where a path ends: the final residual stream, or a head's query, key or value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from saesteer.data.checks import shorten
from saesteer.patching.components import heads_of
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FINAL = "final"
_HEAD = re.compile(r"(\d+)\.(\d+)\.([qkv])")

Positions = Sequence[int] | Tensor


@dataclass(frozen=True)
class Receiver:
    """One end of a path.

    Attributes:
        component: "final" for the residual stream behind the last block, or a head's "q", "k" or
            "v". Where several query heads share keys and values, heads of "k" and "v" are counted
            among those.
        layer: The head's layer; -1 for "final".
        head: The head's number; -1 for "final".
    """

    component: str
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        if self.component == FINAL:
            return FINAL
        return f"{self.layer}.{self.head}.{self.component}"

    @classmethod
    def parse(cls, text: str | Receiver) -> Receiver:
        """Return the receiver named by "final" or by text such as "9.6.q".

        Raises:
            ConfigError: The text has neither form.
        """
        if isinstance(text, Receiver):
            return text
        if text == FINAL:
            return cls(FINAL)
        match = _HEAD.fullmatch(str(text).strip())
        if match is None:
            raise ConfigError(
                f"receiver {shorten(text)} is neither 'final' nor a head's input such as '9.6.q'; "
                "write layer, head and q, k or v."
            )
        return cls(match[3], int(match[1]), int(match[2]))


def chosen_receivers(
    model: TransformerBridge, receivers: str | Receiver | Sequence[str | Receiver]
) -> tuple[Receiver, ...]:
    """Return the receivers asked for.

    Raises:
        ConfigError: There is none, the model has no such head, or "final" stands beside heads,
            whose effect on it would be overwritten.
    """
    given = (receivers,) if isinstance(receivers, str | Receiver) else tuple(receivers)
    chosen = tuple(dict.fromkeys(map(Receiver.parse, given)))
    if not chosen:
        raise ConfigError("receivers: there is none; give 'final' or heads such as '9.6.q'.")
    if len(chosen) > 1 and any(one.component == FINAL for one in chosen):
        raise ConfigError(
            "receivers: 'final' cannot stand beside heads, which reach it by themselves; ask for "
            "it alone."
        )
    for one in chosen:
        if one.component == FINAL:
            continue
        layers, heads = int(model.cfg.n_layers), heads_of(model, one.component)
        if not (0 <= one.layer < layers and 0 <= one.head < heads):
            raise ConfigError(
                f"receiver {one}: the model has layers 0 to {layers - 1} and, of {one.component}, "
                f"heads 0 to {heads - 1}; choose one of them."
            )
    return chosen


def chosen_positions(
    positions: Positions | None, shape: tuple[int, int], what: str
) -> Bool[Tensor, "pair pos"]:
    """Return where a sender or receiver may be patched.

    Args:
        positions: Columns of the patched prompts, counted from the end if below 0, or a mask
            [pair, pos]; None for all.
        shape: Pairs and columns.
        what: What they are called in an error.

    Raises:
        ConfigError: A column does not exist, or the mask has another shape.
    """
    chosen = torch.zeros(shape, dtype=torch.bool)
    if positions is None:
        return ~chosen
    if isinstance(positions, Tensor):
        if tuple(positions.shape) != shape:
            raise ConfigError(
                f"{what}: the mask is {tuple(positions.shape)} and the patched prompts are "
                f"{shape}; give one entry for each pair and column."
            )
        return positions.bool().cpu()
    width = shape[1]
    for column in positions:
        if not -width <= column < width:
            raise ConfigError(
                f"{what}: the prompts have columns 0 to {width - 1}, not {column}; choose one of "
                "them."
            )
        chosen[:, column] = True
    return chosen
