"""The plain engine: a whole pass per patched row, for models that cannot run block by block.

The passes are the plain model's; the bridge's where it alone holds the component, and then only if
it computes the same model.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.loading import plain_model
from saesteer.models.sites import (
    HookTarget,
    Removable,
    Site,
    SiteFunction,
    check_site,
    resolve_target,
)
from saesteer.patching.components import (
    check_per_token,
    find_place,
    heads_of,
    hook_name,
    plain_blocks,
)
from saesteer.patching.engine.prepare import Prepared, What, make_patch
from saesteer.patching.engine.rows import Rows
from saesteer.patching.engine.sides import Scorer, Sides
from saesteer.patching.metrics import Metric
from saesteer.patching.prompts.batch import position_ids
from saesteer.patching.result import Mode
from saesteer.utils.errors import HookError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class PlainEngine:
    """Scores patched rows by whole passes; slow, and right for every model.

    Args:
        model: A model from `load_model`.
        sides: The prompts.
        what: What is patched; None to score the unpatched prompts alone.
        metric: What is measured.
        answers: Every pair's right and wrong answer.
        mode: Which of the two sides is clean.
    """

    def __init__(
        self,
        model: TransformerBridge,
        sides: Sides,
        what: What | None,
        metric: Metric,
        answers: Int[Tensor, "pair 2"],
        mode: Mode,
    ) -> None:
        self._model, self._sides = model, sides
        self._bridged = _needs_bridge(model, what)
        source, theirs = self._read(sides.source_ids, sides.source_mask, what)
        own, ours = self._read(sides.ids, sides.mask, what)
        self._logits = (own, source) if mode == "noising" else (source, own)
        self._scorer = Scorer(metric, answers, self._logits[0])
        self.prepared: Prepared | None = None
        if what is not None:
            heads = heads_of(model, what.component) if what.has_heads else None
            self.prepared = make_patch(what, sides, theirs, ours, heads)

    def unpatched(self) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
        """Return the metric on the clean and on the corrupted prompts."""
        pair = torch.arange(len(self._sides.ids), device=self._sides.ids.device)
        clean, corrupted = (self._score(logits, pair) for logits in self._logits)
        return clean, corrupted

    def __call__(self, rows: Rows) -> Float[np.ndarray, " row"]:
        """Return the metric of rows, in any order."""
        values = np.zeros(len(rows))
        for layer in np.unique(rows.layer):
            which = np.flatnonzero(rows.layer == layer)
            values[which] = self._layer(rows[which], int(layer))
        return values

    def _layer(self, rows: Rows, layer: int) -> Float[np.ndarray, " row"]:
        if self.prepared is None:
            raise ValueError("nothing is patched")
        touched = rows.on(self._sides.ids.device)
        patch = self.prepared.patch
        reached: list[bool] = []

        def change(now: Tensor) -> Tensor:
            reached.append(True)
            return patch.edited(now, touched, layer, 0)

        handle = self._hook(patch.component, layer, change)
        try:
            logits = self._forward(self._sides.ids[touched.pair], self._sides.mask[touched.pair])
        finally:
            handle.remove()
        if not reached:
            raise HookError(
                f"{patch.component} at block {layer} was never reached; choose another component."
            )
        return self._score(logits, touched.pair)

    def _score(self, logits: Tensor, pair: Tensor) -> Float[np.ndarray, " row"]:
        wanted = self._scorer.wanted(pair)
        return self._scorer.score(logits if wanted is None else logits.gather(1, wanted), pair)

    def _read(
        self, ids: Tensor, mask: Bool[Tensor, "pair pos"], what: What | None
    ) -> tuple[Float[Tensor, "pair vocab"], dict[int, Tensor]]:
        parts: dict[int, Tensor] = {}

        def keep(now: Tensor, layer: int) -> None:
            check_per_token(now, f"{what and what.read_component} of block {layer}")
            parts[layer] = now.clone()

        with ExitStack() as stack:
            if what is not None:
                for layer in what.read_layers:
                    handle = self._hook(what.read_component, layer, partial(keep, layer=layer))
                    stack.callback(handle.remove)
            return self._forward(ids, mask), parts

    def _hook(self, component: str, layer: int, function: SiteFunction) -> Removable:
        if not self._bridged:
            place = find_place(self._model, component, layer)
            assert place is not None
            return place.hook(plain_blocks(self._model)[layer], layer, function)
        name = hook_name(component, layer)
        if component != "pattern":
            return resolve_target(self._model, Site.parse(name), bridged=True).hook(function)

        def unfolded(flat: Tensor) -> Tensor | None:
            # A site's hook lays everything behind the second dimension side by side.
            side = int(flat.shape[2] ** 0.5)
            changed = function(flat.unflatten(2, (side, side)))
            return None if changed is None else changed.flatten(2)

        original: Any = self._model.original_model
        point = self._model.hook_dict[name]
        return HookTarget(original, point, "output", Site(layer)).hook(unfolded)

    def _forward(
        self, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "row vocab"]:
        model: Any = self._model.original_model if self._bridged else plain_model(self._model)
        known = inspect.signature(model.forward).parameters
        inputs = {"attention_mask": mask.long(), "position_ids": position_ids(mask)}
        inputs = {name: value for name, value in inputs.items() if name in known}
        return model(input_ids=ids, **inputs, use_cache=False).logits[:, -1].float()


def _needs_bridge(model: TransformerBridge, what: What | None) -> bool:
    """Return whether only the bridge holds what is patched.

    Raises:
        SiteError: It does, and it computes another model or never reaches it.
    """
    parts = [] if what is None else [(name, i) for name in what.components for i in what.layers]
    bridged = [
        part
        for part in parts
        if part[0] in ("pattern", "resid_mid") or find_place(model, *part) is None
    ]
    for component, layer in bridged:
        check_site(model, Site.parse(hook_name(component, layer)))
    return bool(bridged)
