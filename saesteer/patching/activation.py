"""Activation patching: every cell's own patched run, scored by a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from saesteer.models.loading import model_info, plain_model
from saesteer.models.tokens import input_device
from saesteer.patching.components import find_place
from saesteer.patching.engine.arguments import checked_columns, checked_what
from saesteer.patching.engine.attention import windows_allowed
from saesteer.patching.engine.check import windows_stand
from saesteer.patching.engine.fast import FastEngine
from saesteer.patching.engine.limits import Budget
from saesteer.patching.engine.plain import PlainEngine
from saesteer.patching.engine.prepare import Prepared, What
from saesteer.patching.engine.resume import run_chunks
from saesteer.patching.engine.rows import plan_rows
from saesteer.patching.engine.sides import sides_of
from saesteer.patching.metrics import Metric
from saesteer.patching.prompts.batch import PairBatch
from saesteer.patching.result import Mode, PatchResult, check_mode
from saesteer.patching.sae_patching import Clusters
from saesteer.saes.adapter import Sae
from saesteer.utils.array_cache import content_key
from saesteer.utils.errors import DataError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Engine = FastEngine | PlainEngine


def activation_patching(
    model: TransformerBridge,
    batch: PairBatch,
    component: str,
    metric: Metric,
    *,
    mode: Mode = "denoising",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    by_position: bool = False,
    features: Sequence[int] | None = None,
    clusters: Clusters | None = None,
    sae: Sae | None = None,
    memory_gb: float = 2.0,
    progress: Progress | None = None,
    store: Path | None = None,
) -> PatchResult:
    """Patch one component's activations cell by cell and measure every patched run.

    "denoising" writes the clean run's activations into the corrupted run, "noising" the corrupted
    run's into the clean one (Heimersheim and Nanda 2024, "How to use and interpret activation
    patching"). Positions are columns of the prompt that is written to; a column without a
    counterpart in the other prompt, and padding, is left alone and gives NaN by position.

    Components: "resid_pre", "resid_mid", "resid_post", "attn_out" and "mlp_out" by layer and
    position; "z", "q", "k", "v" (before any norm of heads and before rotary positions, as
    transformer_lens has them; keys and values by key-value head) and "pattern" by layer and head,
    and by position (for patterns the destination's) if `by_position`; "sae" by feature or cluster
    at the SAE's site. Of a pattern the mapped columns are patched: keys that the source does not
    have get weight 0, so that its rows sum to less than 1 where lengths differ.

    Args:
        model: A model from `load_model`.
        batch: The prompts.
        component: What to patch.
        metric: What to measure. Its name stands for it in stored chunks, so give a changed metric
            a new name.
        mode: Which run is written to.
        layers: Which layers; all if None.
        positions: Which columns, by position; all if None.
        heads: Which heads; all if None.
        by_position: For heads and features: patch one column at a time rather than all of them.
        features: For "sae": features to patch one by one; those that differ anywhere if None.
        clusters: For "sae": features to patch together, by name, in place of single ones.
        sae: For "sae": the SAE. Its error stays in the stream.
        memory_gb: GiB to hold beside the model; smaller makes smaller batches.
        progress: Where to show progress.
        store: A folder for finished chunks; the same call goes on where it was cut off.

    Returns:
        The metric of every cell, and of both prompts unpatched.

    Raises:
        ConfigError: An argument is unknown, out of range or does not go with the component.
        SiteError: The architecture has no such component.
        MismatchError: The SAE belongs to another model.
        ModelError: Not even one patched prompt fits into memory.
        OutputError: The store cannot be written.
    """
    check_mode(mode)
    what = checked_what(model, component, layers, heads, features, clusters, sae)
    columns = checked_columns(batch, component, positions, by_position)
    budget = Budget.of(model, batch.width, memory_gb)
    with torch.inference_mode(), _engines(model, batch, metric, mode, what, progress) as engine:
        groups = _groups(len(batch), budget.pairs(what))
        if what.sae is not None and clusters is None and features is None and len(groups) > 1:
            what = replace(what, features=_differing(engine, groups, what))
        job = _Job(model, batch, metric, mode, what, columns, heads, budget, progress, store)
        parts = [job.run(engine(group, what), group) for group in groups]
    values, clean, corrupted = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("values", "clean", "corrupted")
    )
    return job.result(values, clean, corrupted, parts[0].labels)


def unpatched(
    model: TransformerBridge, batch: PairBatch, metric: Metric, *, memory_gb: float = 2.0
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Return the metric on every pair's clean and corrupted prompt.

    Args:
        model: A model from `load_model`.
        batch: The prompts.
        metric: What to measure.
        memory_gb: GiB to hold beside the model.
    """
    budget = Budget.of(model, batch.width, memory_gb)
    with torch.inference_mode(), _engines(model, batch, metric, "denoising", None, None) as engine:
        groups = _groups(len(batch), min(budget.pairs(None), budget.rows(0)))
        clean, corrupted = zip(*(engine(group, None).unpatched() for group in groups), strict=True)
    return np.concatenate(clean), np.concatenate(corrupted)


@dataclass(frozen=True)
class _Part:
    """One group of pairs, patched."""

    values: Float[np.ndarray, "pair layer label ..."]
    clean: Float[np.ndarray, " pair"]
    corrupted: Float[np.ndarray, " pair"]
    labels: tuple[int | str, ...]


@dataclass(frozen=True)
class _Job:
    """All that stays the same from one group of pairs to the next."""

    model: TransformerBridge
    batch: PairBatch
    metric: Metric
    mode: Mode
    what: What
    columns: np.ndarray | None
    heads: Sequence[int] | None
    budget: Budget
    progress: Progress | None
    store: Path | None

    def run(self, engine: Engine, group: slice) -> _Part:
        prepared = _prepared(engine)
        clean, corrupted = engine.unpatched()
        base = clean if self.mode == "noising" else corrupted
        kept, labels = self._labels(prepared)
        layers = np.asarray(self.what.layers)
        shape = (len(base), len(layers), max(1, len(kept)))
        alive = prepared.alive
        if self.columns is not None:
            shape = (*shape, len(self.columns))
        values = np.broadcast_to(base.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()
        self._blank(values, group)
        rows = plan_rows(shape, layers, kept, self.columns, alive)
        task = (self.progress or Progress()).task(
            f"patching {self.what.component}", len(rows), "rows"
        )
        key = self._key(group, labels)
        with task:
            for chunk, scores in run_chunks(
                rows, self.budget.rows, engine, key=key, store=self.store, task=task
            ):
                values.flat[chunk.cell] = scores
        return _Part(values, clean, corrupted, labels)

    def _labels(self, prepared: Prepared) -> tuple[np.ndarray, tuple[int | str, ...]]:
        """Return the places of the wanted labels in the patch, and their names."""
        if not self.what.has_heads or self.heads is None:
            return np.arange(len(prepared.labels)), prepared.labels
        return np.asarray(self.heads), tuple(int(head) for head in self.heads)

    def _blank(self, values: np.ndarray, group: slice) -> None:
        """Put NaN where the prompt has no such position, or the other prompt none for it."""
        if self.columns is None:
            return
        sides = sides_of(self.batch, self.mode, group, torch.device("cpu"))
        without = ~sides.allowed.numpy()[:, self.columns]
        values[np.broadcast_to(without[:, None, None], values.shape)] = np.nan

    def _key(self, group: slice, labels: tuple[int | str, ...]) -> str:
        """Return a hash of all that the rows' numbers depend on beside the rows."""
        what, batch = self.what, self.batch
        tensors = (
            batch.clean,
            batch.corrupted,
            batch.clean_mask,
            batch.corrupted_mask,
            batch.to_clean,
            batch.right,
            batch.wrong,
        )
        clusters = [(name, list(map(int, group))) for name, group in (what.clusters or {}).items()]
        return content_key(
            model_info(self.model).fingerprint,
            str(plain_model(self.model).dtype),
            [tensor[group].cpu().numpy() for tensor in tensors],
            self.metric.name,
            self.mode,
            what.component,
            "" if what.sae is None else [what.sae.fingerprint, list(labels), clusters],
        )

    def result(
        self,
        values: np.ndarray,
        clean: np.ndarray,
        corrupted: np.ndarray,
        labels: tuple[int | str, ...],
    ) -> PatchResult:
        """Return the numbers with their labels."""
        what = self.what
        axis = "head" if what.has_heads else "cluster" if what.clusters is not None else "feature"
        axes: list[tuple[str, tuple[int | str, ...]]] = [("layer", what.layers), (axis, labels)]
        named = [what.sae is None, bool(labels)]
        if self.columns is not None:
            axes.append(("position", tuple(self.columns.tolist())))
            named.append(True)
        kept = [one for one, there in zip(axes, named, strict=True) if there]
        shape = (len(values), *(len(labels) for _, labels in kept))
        tokens: tuple[tuple[str, ...], ...] = ()
        if self.columns is not None:
            noising = self.mode == "noising"
            words = self.batch.clean_words if noising else self.batch.corrupted_words
            tokens = tuple(tuple(row[i] for i in self.columns) for row in words)
        return PatchResult(
            method="activation",
            component=what.component,
            mode=self.mode,
            metric=self.metric.name,
            dims=tuple(name for name, _ in kept),
            coords=dict(kept),
            values=values.reshape(shape),
            clean=clean,
            corrupted=corrupted,
            pairs=tuple(pair.name or f"pair {i}" for i, pair in enumerate(self.batch.pairs, 1)),
            tokens=tokens,
        )


@contextmanager
def _engines(
    model: TransformerBridge,
    batch: PairBatch,
    metric: Metric,
    mode: Mode,
    what: What | None,
    progress: Progress | None,
) -> Iterator[Callable[[slice, What | None], Engine]]:
    """Give a function that makes the engine for a group of pairs: fast where the model allows."""
    device = input_device(plain_model(model))
    if len(batch) == 0:
        raise DataError("there is no pair of prompts to patch; give at least one.")
    placed = what is None or all(_placed(model, name, what.layers) for name in what.components)
    fast = placed and windows_stand(model, sides_of(batch, mode, slice(None), device))
    if not fast and progress is not None:
        progress.say(
            f"{model.cfg.model_name} cannot be patched block by block here, so every patched "
            "prompt is a whole pass; this is slower."
        )
    kind = FastEngine if fast else PlainEngine
    answers = torch.stack([batch.right, batch.wrong], dim=1).to(device)

    def make(group: slice, what: What | None) -> Engine:
        sides = sides_of(batch, mode, group, device)
        return kind(model, sides, what, metric, answers[group], mode)

    with windows_allowed(plain_model(model)) if fast else nullcontext():
        yield make


def _placed(model: TransformerBridge, component: str, layers: Sequence[int]) -> bool:
    """Return whether one module of every block holds a component, the same in all of them."""
    if component == "pattern":
        return True
    places = {find_place(model, component, layer) for layer in layers}
    return len(places) == 1 and None not in places


def _groups(count: int, each: int) -> list[slice]:
    return [slice(start, min(count, start + each)) for start in range(0, count, each)]


def _prepared(engine: Engine) -> Prepared:
    if engine.prepared is None:
        raise ValueError("nothing is patched")
    return engine.prepared


def _differing(
    engine: Callable[[slice, What | None], Engine], groups: list[slice], what: What
) -> tuple[int, ...]:
    """Return the features that differ in any group, so that all groups have the same labels."""
    found = {int(one) for group in groups for one in _prepared(engine(group, what)).labels}
    return tuple(sorted(found))
