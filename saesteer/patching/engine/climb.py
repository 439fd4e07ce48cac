"""Patched runs that start at the layer and column they touch and climb together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.patching.components import RESIDUAL, Place
from saesteer.patching.engine.attention import Window
from saesteer.patching.engine.patches import Patch
from saesteer.patching.engine.rows import Rows, Touched
from saesteer.patching.engine.steps import Hidden, Prompts, Steps
from saesteer.utils.errors import HookError


@dataclass(frozen=True)
class Run:
    """An unpatched run, block by block.

    Attributes:
        prompts: Its prompts.
        last: The last block's output at the last column.
        residual: What enters every block, and what leaves the last; empty if not kept.
        keys: Every block's keys, positions applied; empty if not kept.
        values: Every block's values.
        parts: The asked-for component at the asked-for layers.
    """

    prompts: Prompts
    last: Float[Tensor, "pair d_model"]
    residual: tuple[Float[Tensor, "pair pos d_model"], ...] = ()
    keys: tuple[Float[Tensor, "pair head pos d_head"], ...] = ()
    values: tuple[Float[Tensor, "pair head pos d_head"], ...] = ()
    parts: Mapping[int, Tensor] = field(default_factory=dict)


def run_whole(
    steps: Steps,
    ids: Int[Tensor, "pair pos"],
    mask: Bool[Tensor, "pair pos"],
    *,
    keep: bool = False,
    layers: Collection[int] = (),
    place: Place | None = None,
) -> Run:
    """Run prompts unpatched and keep what patched runs need of them.

    Args:
        steps: The model.
        ids: Token ids, padded on the left.
        mask: True at real tokens.
        keep: Keep residuals, keys and values: for the destination of patches.
        layers: Keep a component at these layers.
        place: Which component; attention patterns if None.
    """
    prompts = steps.open(ids, mask)
    hidden = prompts.embedded
    pair = torch.arange(len(ids), device=hidden.device)
    residual, keys, values = [hidden], [], []
    parts: dict[int, Tensor] = {}
    for layer, block in enumerate(steps.blocks):
        asked = layer in layers
        window = Window(keep=keep, keep_pattern=asked and place is None)
        with ExitStack() as stack:
            if asked and place is not None:
                taken = partial(_keep, parts, layer)
                stack.callback(place.hook(block, layer, taken).remove)
            hidden = steps.block(layer, hidden, prompts, pair, 0, window)
        if asked and place is None:
            parts[layer] = window.kept.pop()
        if asked and layer not in parts:
            raise HookError(
                f"the component at block {layer} was never reached; choose another one."
            )
        if keep:
            residual.append(hidden)
            keys.append(window.kept[0])
            values.append(window.kept[1])
    kept = tuple(residual) if keep else ()
    return Run(prompts, hidden[:, -1].clone(), kept, tuple(keys), tuple(values), parts)


def _keep(parts: dict[int, Tensor], layer: int, own: Tensor) -> None:
    parts[layer] = own.clone()


@dataclass(frozen=True)
class Climber:
    """Runs patched rows upward from where they differ from the destination's run.

    Columns before a row's first patched one are as in the unpatched run, so their keys and values
    are taken from there; so is everything below the patched layer.

    Attributes:
        steps: The model.
        run: The destination's unpatched run, kept.
        patch: What is patched.
        place: The component's module; None for attention patterns.
    """

    steps: Steps
    run: Run
    patch: Patch
    place: Place | None

    def climb(self, rows: Rows) -> Float[Tensor, "row d_model"]:
        """Return the last block's output at the last column of every row.

        Args:
            rows: Rows that start at one column, lower layers first.
        """
        first = int(rows.column[0])
        # What leaves a block is what enters the next one, and costs a block less from there.
        behind = int(self.patch.component == "resid_post")
        touched = rows.on(self.run.last.device)
        hidden = self.run.residual[0][:0, first:]
        done = 0
        for layer in range(int(rows.layer[0]) + behind, len(self.steps.blocks) + 1):
            upto = int((rows.layer + behind <= layer).sum())
            new = touched.some(slice(done, upto))
            start = self.run.residual[layer][new.pair, first:]
            if self.patch.component in RESIDUAL and upto > done:
                start = self.patch.edited(start, new, layer - behind, first)
            hidden = torch.cat([hidden, start])
            if layer < len(self.steps.blocks):
                hidden = self._step(layer, hidden, touched.pair[:upto], new, first)
            done = upto
        return hidden[:, -1]

    def _step(self, layer: int, hidden: Hidden, pair: Tensor, new: Touched, first: int) -> Hidden:
        past = self.run.keys[layer][pair, :, :first], self.run.values[layer][pair, :, :first]
        if layer < len(self.steps.blocks) - 1 or hidden.shape[1] == 1:
            return self._block(layer, hidden, pair, new, first, past)
        # Behind the last block the answer's column alone is read: of the others it needs no more
        # than keys and values.
        with self._patched(layer, new, first, []):
            own = self.steps.keys_of(layer, hidden[:, :-1], self.run.prompts, pair, first)
        past = torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2)
        last = self._block(layer, hidden[:, -1:], pair, new, first + hidden.shape[1] - 1, past)
        return torch.cat([hidden[:, :-1], last], dim=1)

    def _block(
        self,
        layer: int,
        hidden: Hidden,
        pair: Tensor,
        new: Touched,
        first: int,
        past: tuple[Tensor, Tensor],
    ) -> Hidden:
        window = Window(*past)
        if self.place is None and len(new.pair):
            window.edit = lambda pattern: self._edited(pattern, new, layer, first)
        behind: list[Tensor] = []
        with self._patched(layer, new, first, behind):
            out = self.steps.block(layer, hidden, self.run.prompts, pair, first, window)
        return out + behind[0] if behind else out

    @contextmanager
    def _patched(
        self, layer: int, new: Touched, first: int, behind: list[Tensor]
    ) -> Iterator[None]:
        """Patch the component in the newest rows; `behind` gets what to add behind the block."""
        component = self.patch.component
        if self.place is None or component in RESIDUAL or not len(new.pair):
            yield
            return

        def change(now: Tensor) -> Tensor:
            after = self._edited(now, new, layer, first)
            if component == "resid_mid":
                # Only the MLP reads it from here: the residual stream itself runs past.
                behind[:] = [after - now]
            return after

        handle = self.place.hook(self.steps.blocks[layer], layer, change)
        try:
            yield
        finally:
            handle.remove()

    def _edited(self, now: Tensor, new: Touched, layer: int, first: int) -> Tensor:
        old = len(now) - len(new.pair)
        return torch.cat([now[:old], self.patch.edited(now[old:], new, layer, first)])
