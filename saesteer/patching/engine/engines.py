"""The two engines that score patched rows: block by block, and by whole passes.

The fast one starts rows at the layer and column where they differ and lets them run upward
together. The plain one is slow, and right for every model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.forward import all_logits
from saesteer.models.hooks import HookTarget, hooked, keeping
from saesteer.models.loading import plain_model
from saesteer.models.sites import bridge_target, check_site, resolve_target
from saesteer.patching.batch import Direction
from saesteer.patching.engine.attention import KVWindow
from saesteer.patching.engine.blocks import BlockRunner, Hidden
from saesteer.patching.engine.patches import Patch, make_patch
from saesteer.patching.engine.rows import Rows, Touched
from saesteer.patching.metrics import Metric, scores
from saesteer.patching.target import RESIDUAL, Target, find_target, heads_of, site_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

VOCABULARY_BYTES = 2**26
Ends = tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]


class FastEngine:
    """Scores patched rows block by block.

    Columns before a row's first patched one are as in the unpatched run, so their keys and values
    are taken from there; so is everything below the patched layer.

    Args:
        model: A model from `load_model`.
        runner: The same, block by block.
        direction: The prompts.
        target: What is patched; None to score the unpatched prompts alone.
        metric: What is measured.
    """

    def __init__(
        self,
        model: TransformerBridge,
        runner: BlockRunner,
        direction: Direction,
        target: Target | None,
        metric: Metric,
    ) -> None:
        self._runner, self._direction, self._metric = runner, direction, metric
        component, layers = ("", ()) if target is None else target.read_site
        parts = {(component, layer): find_target(model, component, layer) for layer in layers}
        own_parts = parts if target is not None and target.sae is not None else {}
        source = runner.run(direction.source_ids, direction.source_mask, parts=parts)
        run = runner.run(direction.ids, direction.mask, keep=target is not None, parts=own_parts)
        self._run = run
        self._lasts = run.last, source.last
        clean = self._lasts[direction.mode == "denoising"]
        self._clean = None if metric.answers_only else runner.logits(clean)
        if target is not None:
            self._written = target.written
            self._targets = {
                layer: find_target(model, self._written, layer) for layer in target.layers
            }
            self.patch: Patch = make_patch(
                target,
                direction,
                {layer: source.parts[component, layer] for layer in layers},
                {layer: part for (_, layer), part in run.parts.items()},
                heads_of(model, component) if target.has_heads else 0,
            )

    def ends(self) -> Ends:
        """Return the metric of the destination and of the source, unpatched."""
        pair = torch.arange(len(self._direction), device=self._direction.ids.device)
        own, source = (self._score(last, pair) for last in self._lasts)
        return own, source

    def __call__(self, rows: Rows) -> Float[np.ndarray, " row"]:
        """Return the metric of rows that start at one column, lower layers first."""
        first = int(rows.column[0])
        # What leaves a block is what enters the next one, and costs a block less from there.
        behind = int(self._written == "resid_post")
        touched = rows.on(self._run.last.device)
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

    def _score(self, last: Float[Tensor, "row d_model"], pair: Tensor) -> np.ndarray:
        answers = self._direction.answers
        each = len(last)
        if not self._metric.answers_only:
            each = VOCABULARY_BYTES // (4 * int(self._runner.model.config.vocab_size))
        found = []
        for some, rows in zip(last.split(max(1, each)), pair.split(max(1, each)), strict=True):
            wanted = answers[rows] if self._metric.answers_only else None
            logits = self._runner.logits(some, wanted)
            clean = None if self._clean is None else self._clean[rows]
            found.append(scores(self._metric, logits, answers[rows], clean).double().cpu().numpy())
        return np.concatenate(found)


class PlainEngine:
    """Scores patched rows by a whole pass each, for models that cannot run block by block.

    The passes are the plain model's; the bridge's where it alone holds the component, and then
    only if it computes the same model. Arguments as of `FastEngine`.
    """

    def __init__(
        self,
        model: TransformerBridge,
        direction: Direction,
        target: Target | None,
        metric: Metric,
    ) -> None:
        self._model, self._direction, self._metric = model, direction, metric
        self._bridged = target is not None and _needs_bridge(model, target)
        self._root: Any = model.original_model if self._bridged else plain_model(model)
        component, layers = ("", ()) if target is None else target.read_site
        parts = {layer: self._target(component, layer) for layer in layers}
        self._logits = []
        kept = []
        for ids, mask in (
            (direction.ids, direction.mask),
            (direction.source_ids, direction.source_mask),
        ):
            with keeping(parts, keep=Tensor.clone) as one:
                self._logits.append(all_logits(self._root, ids, mask)[:, -1].float())
            kept.append(one)
        self._clean = self._logits[direction.mode == "denoising"]
        if target is not None:
            self._written = target.written
            heads = heads_of(model, component) if target.has_heads else 0
            self.patch: Patch = make_patch(target, direction, kept[1], kept[0], heads)

    def ends(self) -> Ends:
        """Return the metric of the destination and of the source, unpatched."""
        pair = torch.arange(len(self._direction), device=self._direction.ids.device)
        own, source = (self._score(logits, pair) for logits in self._logits)
        return own, source

    def __call__(self, rows: Rows) -> Float[np.ndarray, " row"]:
        """Return the metric of rows, in any order."""
        values = np.zeros(len(rows))
        for layer in map(int, np.unique(rows.layer)):
            which = np.flatnonzero(rows.layer == layer)
            touched = rows[which].on(self._direction.ids.device)

            def change(now: Tensor, touched: Touched = touched, layer: int = layer) -> Tensor:
                return self.patch.edited(now, touched, layer, 0)

            ids, mask = self._direction.ids[touched.pair], self._direction.mask[touched.pair]
            with hooked([(self._target(self._written, layer), change)]):
                logits = all_logits(self._root, ids, mask)[:, -1].float()
            values[which] = self._score(logits, touched.pair)
        return values

    def _target(self, component: str, layer: int) -> HookTarget:
        site = site_of(component, layer)
        if self._bridged:
            if component == "pattern":
                return bridge_target(self._model, site)
            return resolve_target(self._model, site, bridged=True)
        target = find_target(self._model, component, layer)
        assert target is not None
        return target

    def _score(self, logits: Tensor, pair: Tensor) -> Float[np.ndarray, " row"]:
        answers = self._direction.answers[pair]
        return scores(self._metric, logits, answers, self._clean[pair]).double().cpu().numpy()


Engine = FastEngine | PlainEngine


def _needs_bridge(model: TransformerBridge, target: Target) -> bool:
    """Return whether only the bridge holds what is patched."""
    bridged = [
        part for part in target.parts if part[0] == "resid_mid" or find_target(model, *part) is None
    ]
    for component, layer in bridged:
        check_site(model, site_of(component, layer))
    return bool(bridged)


def runs_in_blocks(model: TransformerBridge, target: Target) -> bool:
    """Return whether the plain model's own modules hold all of a target."""
    return all(
        component == "pattern" or find_target(model, component, layer) is not None
        for component, layer in target.parts
    )
