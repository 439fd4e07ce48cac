"""The two engines that score patched rows: block by block, and by whole passes.

The fast one starts rows at the layer and column where they differ and lets them run upward
together. The plain one is slow, and right for every model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.forward import all_logits
from saesteer.models.hooks import HookTarget, hooked, keeping
from saesteer.models.loading import plain_model
from saesteer.models.sites import bridge_target, check_site, resolve_target
from saesteer.patching.batch import Direction
from saesteer.patching.engine.blocks import BlockRunner, Hidden, KVWindow
from saesteer.patching.engine.patches import make_patch
from saesteer.patching.engine.rows import Rows, Touched
from saesteer.patching.metrics import Metric, scores
from saesteer.patching.target import RESIDUAL, Target, find_target, heads_of, site_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

VOCABULARY_BYTES = 2**26
Numbers = Float[np.ndarray, " row"]
Ends = tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]


class Scorer:
    """The metric of rows at the answer's position.

    Args:
        direction: The prompts that the rows come from.
        metric: What is measured.
        lasts: What is scored of the two unpatched runs, destination and source.
        logits: From what is scored to logits, of the row's two answers alone if these are given.
    """

    def __init__(
        self,
        direction: Direction,
        metric: Metric,
        lasts: tuple[Tensor, Tensor],
        logits: Callable[[Tensor, Int[Tensor, "row 2"] | None], Float[Tensor, "row column"]],
    ) -> None:
        self._answers, self._metric, self._logits = direction.answers, metric, logits
        clean = lasts[direction.mode == "denoising"]
        self._clean = None if metric.answers_only else logits(clean, None)
        pair = torch.arange(len(direction), device=direction.ids.device)
        # The metric of the destination and of the source, unpatched.
        self.ends: Ends = self(lasts[0], pair), self(lasts[1], pair)

    def __call__(self, last: Tensor, pair: Int[Tensor, " row"]) -> Numbers:
        """Return every row's number."""
        each = len(last)
        if self._clean is not None:
            each = VOCABULARY_BYTES // (4 * self._clean.shape[1])
        found = []
        for some, rows in zip(last.split(max(1, each)), pair.split(max(1, each)), strict=True):
            answers = self._answers[rows]
            logits = self._logits(some, answers if self._metric.answers_only else None)
            clean = None if self._clean is None else self._clean[rows]
            found.append(scores(self._metric, logits, answers, clean).double().cpu().numpy())
        return np.concatenate(found)


class FastEngine:
    """Scores patched rows block by block.

    Columns before a row's first patched one are as in the unpatched run, so their keys and values
    are taken from there; so is everything below the patched layer.
    """

    def __init__(
        self,
        model: TransformerBridge,
        runner: BlockRunner,
        direction: Direction,
        target: Target,
        metric: Metric,
    ) -> None:
        self._runner = runner
        component, layers = target.read_site
        parts = {(component, layer): find_target(model, component, layer) for layer in layers}
        source = runner.run(direction.source_ids, direction.source_mask, parts=parts)
        own_parts = {} if target.sae is None else parts
        self._run = runner.run(direction.ids, direction.mask, keep=True, parts=own_parts)
        self._score = Scorer(direction, metric, (self._run.last, source.last), runner.logits)
        self.ends = self._score.ends
        self._written = target.written
        self._targets = {at: find_target(model, self._written, at) for at in target.layers}
        self.patch = make_patch(
            target,
            direction,
            {layer: source.parts[component, layer] for layer in layers},
            {layer: part for (_, layer), part in self._run.parts.items()},
            heads_of(model, component) if target.has_heads else 0,
        )

    def __call__(self, rows: Rows) -> Numbers:
        """Return the metric of rows that start at one column, lower layers first."""
        first = int(rows.column[0])
        # What leaves a block is what enters the next one, and costs a block less from there.
        behind = int(self._written == "resid_post")
        touched = Touched.of(rows, self._run.last.device)
        hidden = self._run.residual[0][:0, first:]
        done = 0
        for layer in range(int(rows.layer[0]) + behind, len(self._runner.blocks) + 1):
            upto = int((rows.layer + behind <= layer).sum())
            new = touched.some(slice(done, upto))
            start = self._run.residual[layer][new.pair, first:]
            if self._written in RESIDUAL and upto > done:
                start = self.patch.edited(start, new, layer - behind, first)
            hidden = torch.cat([hidden, start])
            if layer < len(self._runner.blocks):
                hidden = self._step(layer, hidden, touched.pair[:upto], new, first)
            done = upto
        return self._score(hidden[:, -1], touched.pair)

    def _step(self, layer: int, hidden: Hidden, pair: Tensor, new: Touched, first: int) -> Hidden:
        past = self._run.past(layer, pair, first)
        if layer < len(self._runner.blocks) - 1 or hidden.shape[1] == 1:
            return self._block(layer, hidden, pair, new, first, past)
        # Behind the last block the answer's column alone is read: of the others it needs no more
        # than keys and values.
        with self._patched(layer, new, first, []):
            own = self._runner.keys_of(layer, hidden[:, :-1], self._run, pair, first)
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
        window = KVWindow(*past)
        if self._written == "pattern" and len(new.pair):
            window.edit = lambda pattern: self._edited(pattern, new, layer, first)
        behind: list[Tensor] = []
        with self._patched(layer, new, first, behind):
            out = self._runner.block(layer, hidden, self._run, pair, first, window)
        return out + behind[0] if behind else out

    def _patched(
        self, layer: int, new: Touched, first: int, behind: list[Tensor]
    ) -> AbstractContextManager[None]:
        """Patch the component in the newest rows; `behind` gets what to add behind the block."""
        target = self._targets.get(layer)
        if target is None or self._written in RESIDUAL or not len(new.pair):
            return nullcontext()

        def change(now: Tensor) -> Tensor:
            after = self._edited(now, new, layer, first)
            if self._written == "resid_mid":
                # Only the MLP reads it from here: the residual stream itself runs past.
                behind[:] = [after - now]
            return after

        # A pass that ends with keys and values does not come as far.
        return hooked([(target, change)], required=False)

    def _edited(self, now: Tensor, new: Touched, layer: int, first: int) -> Tensor:
        old = len(now) - len(new.pair)
        return torch.cat([now[:old], self.patch.edited(now[old:], new, layer, first)])


class PlainEngine:
    """Scores patched rows by a whole pass each, for models that cannot run block by block.

    The passes are the plain model's; the bridge's where it alone holds the component, and then
    only if it computes the same model.
    """

    def __init__(
        self, model: TransformerBridge, direction: Direction, target: Target, metric: Metric
    ) -> None:
        self._model, self._direction = model, direction
        bridged = [
            part
            for part in target.parts
            if part[0] == "resid_mid" or find_target(model, *part) is None
        ]
        for component, layer in bridged:
            check_site(model, site_of(component, layer))
        self._bridged = bool(bridged)
        self._root: Any = model.original_model if bridged else plain_model(model)
        component, layers = target.read_site
        parts = {layer: self._target(component, layer) for layer in layers}
        with keeping(parts, keep=Tensor.clone) as own:
            here = self._logits(direction.ids, direction.mask)
        with keeping(parts, keep=Tensor.clone) as source:
            there = self._logits(direction.source_ids, direction.source_mask)
        self._score = Scorer(direction, metric, (here, there), lambda logits, _: logits)
        self.ends = self._score.ends
        self._written = target.written
        heads = heads_of(model, component) if target.has_heads else 0
        self.patch = make_patch(target, direction, source, own, heads)

    def __call__(self, rows: Rows) -> Numbers:
        """Return the metric of rows, in any order."""
        values = np.zeros(len(rows))
        for layer in map(int, np.unique(rows.layer)):
            which = np.flatnonzero(rows.layer == layer)
            touched = Touched.of(rows[which], self._direction.ids.device)

            def change(now: Tensor, touched: Touched = touched, layer: int = layer) -> Tensor:
                return self.patch.edited(now, touched, layer, 0)

            ids, mask = self._direction.ids[touched.pair], self._direction.mask[touched.pair]
            with hooked([(self._target(self._written, layer), change)]):
                logits = self._logits(ids, mask)
            values[which] = self._score(logits, touched.pair)
        return values

    def _logits(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "row vocab"]:
        return all_logits(self._root, ids, mask)[:, -1].float()

    def _target(self, component: str, layer: int) -> HookTarget:
        site = site_of(component, layer)
        if self._bridged:
            if component == "pattern":
                return bridge_target(self._model, site)
            return resolve_target(self._model, site, bridged=True)
        target = find_target(self._model, component, layer)
        assert target is not None
        return target


Engine = FastEngine | PlainEngine


def runs_in_blocks(model: TransformerBridge, target: Target) -> bool:
    """Return whether the plain model's own modules hold all of a target."""
    return all(
        component == "pattern" or find_target(model, component, layer) is not None
        for component, layer in target.parts
    )
