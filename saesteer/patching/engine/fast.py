"""The fast engine: patched rows start where they differ and climb through the blocks together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.patching.components import Place, find_place, heads_of
from saesteer.patching.engine.climb import Climber, Run, run_whole
from saesteer.patching.engine.patches import Patch
from saesteer.patching.engine.prepare import Prepared, What, make_patch
from saesteer.patching.engine.rows import Rows
from saesteer.patching.engine.sides import Scorer, Sides
from saesteer.patching.engine.steps import Steps
from saesteer.patching.metrics import Metric
from saesteer.patching.result import Mode

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

VOCABULARY_BYTES = 2**26


class FastEngine:
    """Scores patched rows; the model's attention must take windows meanwhile.

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
        self._steps = Steps(model)
        layers = () if what is None else what.read_layers
        read = None if what is None else _place(model, what.read_component, what.read_layers[0])
        own = layers if what is not None and what.sae is not None else ()
        source = run_whole(
            self._steps, sides.source_ids, sides.source_mask, layers=layers, place=read
        )
        run = run_whole(
            self._steps, sides.ids, sides.mask, keep=what is not None, layers=own, place=read
        )
        self._lasts = (run.last, source.last) if mode == "noising" else (source.last, run.last)
        clean = None if metric.answers_only else self._steps.logits(self._lasts[0], None)
        self._scorer = Scorer(metric, answers, clean)
        self.prepared: Prepared | None = None
        if what is not None:
            heads = heads_of(model, what.component) if what.has_heads else None
            self.prepared = make_patch(what, sides, source.parts, run.parts, heads)
            self._climber = self._climb(model, run, self.prepared.patch, what.layers[0])

    def unpatched(self) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
        """Return the metric on the clean and on the corrupted prompts."""
        pair = torch.arange(len(self._lasts[0]), device=self._lasts[0].device)
        clean, corrupted = (self._score(last, pair) for last in self._lasts)
        return clean, corrupted

    def __call__(self, rows: Rows) -> Float[np.ndarray, " row"]:
        """Return the metric of rows that start at one column, lower layers first."""
        last = self._climber.climb(rows)
        return self._score(last, rows.on(last.device).pair)

    def _climb(self, model: TransformerBridge, run: Run, patch: Patch, layer: int) -> Climber:
        return Climber(self._steps, run, patch, _place(model, patch.component, layer))

    def _score(self, last: Float[Tensor, "row d_model"], pair: Tensor) -> np.ndarray:
        wanted = self._scorer.wanted(pair)
        if wanted is not None:
            return self._scorer.score(self._steps.logits(last, wanted), pair)
        each = max(1, VOCABULARY_BYTES // (4 * int(self._steps.model.config.vocab_size)))
        parts = [
            self._scorer.score(self._steps.logits(some, None), rows)
            for some, rows in zip(last.split(each), pair.split(each), strict=True)
        ]
        return np.concatenate(parts)


def _place(model: TransformerBridge, component: str, layer: int) -> Place | None:
    return None if component == "pattern" else find_place(model, component, layer)
