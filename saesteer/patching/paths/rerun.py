"""The run in which receivers read what they were told on one path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.patching.engine.attention import Window
from saesteer.patching.engine.climb import Run
from saesteer.patching.engine.steps import Steps
from saesteer.patching.paths.receivers import Receiver
from saesteer.patching.paths.streams import Tokens, head_columns, place_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Told:
    """What every sender tells the receivers of one layer and kind.

    Attributes:
        layer: The receivers' layer.
        component: "q", "k" or "v".
        heads: The receivers' heads.
        values: What these heads read side by side, for every sender below the layer, lowest first.
    """

    layer: int
    component: str
    heads: tuple[int, ...]
    values: Float[Tensor, "sender token width"]


def grouped(receivers: Sequence[Receiver]) -> dict[tuple[int, str], tuple[int, ...]]:
    """Return the receivers' heads by layer and component."""
    found: dict[tuple[int, str], tuple[int, ...]] = {}
    for one in receivers:
        key = one.layer, one.component
        found[key] = (*found.get(key, ()), one.head)
    return found


class Rerun:
    """Runs the destination from the lowest receiver's layer and first position on.

    Args:
        model: The model.
        steps: The same, block by block.
        run: The destination's unpatched run, kept.
        told: What the receivers read, for every layer and kind.
        tokens: Where.
    """

    def __init__(
        self,
        model: TransformerBridge,
        steps: Steps,
        run: Run,
        told: Sequence[Told],
        tokens: Tokens,
    ) -> None:
        self._model, self._steps, self._run, self._told = model, steps, run, told
        self.first = int(tokens.column.min())
        shape = run.residual[0].shape[:2]
        self._number = torch.full(shape, -1, device=tokens.pair.device)
        self._number[tokens.pair, tokens.column] = torch.arange(
            len(tokens), device=tokens.pair.device
        )

    def last(
        self, sender: Int[Tensor, " row"], pair: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """Return the last block's output at the answer's position.

        Args:
            sender: Every row's sender, counted as in `Told.values`.
            pair: Every row's pair.
        """
        first, run = self.first, self._run
        start = min(told.layer for told in self._told)
        hidden = run.residual[start][pair, first:]
        for layer in range(start, len(self._steps.blocks)):
            with ExitStack() as stack:
                for told in self._told:
                    if told.layer == layer and len(told.values):
                        place = place_of(self._model, told.component)
                        change = self._change(told, sender, pair)
                        block = self._steps.blocks[layer]
                        stack.callback(place.hook(block, layer, change).remove)
                window = Window(
                    run.keys[layer][pair, :, :first], run.values[layer][pair, :, :first]
                )
                hidden = self._steps.block(layer, hidden, run.prompts, pair, first, window)
        return hidden[:, -1]

    def _change(self, told: Told, sender: Tensor, pair: Tensor) -> Callable[[Tensor], Tensor]:
        number = self._number[pair, self.first :]
        live = (number >= 0) & (sender < len(told.values))[:, None]
        new = told.values[sender.clamp(max=len(told.values) - 1)[:, None], number.clamp(min=0)]
        each = new.shape[-1] // len(told.heads)
        columns = head_columns(told.heads, each, new.device)

        def change(now: Tensor) -> Tensor:
            after = now.clone()
            after[..., columns] = torch.where(live[:, :, None], new, now[..., columns])
            return after

        return change
