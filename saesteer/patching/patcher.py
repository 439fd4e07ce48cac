"""Patching: every cell's own patched run, scored by a metric; and the one call for all methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from saesteer.models.forward import last_logits_in_parts
from saesteer.models.loading import model_info, plain_model
from saesteer.models.tokens import input_device
from saesteer.patching.attribution import attribution_patching
from saesteer.patching.batch import Direction, Mode, PairBatch, direction_of, encode_pairs
from saesteer.patching.engine.blocks import block_runner
from saesteer.patching.engine.engines import Ends, Engine, FastEngine, PlainEngine, runs_in_blocks
from saesteer.patching.engine.rows import Memory, plan_rows, run_chunks
from saesteer.patching.metrics import Metric, metric_named, scores
from saesteer.patching.pairs import PromptPair, load_prompt_pairs
from saesteer.patching.paths import path_patching
from saesteer.patching.result import Method, PatchResult
from saesteer.patching.target import Clusters, Target, chosen_columns
from saesteer.saes.adapter import Sae
from saesteer.utils.cache import content_key
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def patch(
    model: TransformerBridge,
    pairs: PairBatch | str | Path | Iterable[PromptPair | Mapping[str, Any]],
    component: str,
    metric: str | Metric = "logit_difference",
    *,
    method: Method = "activation",
    receivers: str | Sequence[str] = "final",
    **options: Any,
) -> PatchResult:
    """Patch one component of a model on pairs of prompts, and measure what that does.

    Args:
        model: A model from `load_model`.
        pairs: From `load_prompt_pairs`, what it reads, or a `PairBatch`.
        component: What is patched: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
            "z", "q", "k", "v", "pattern" or "sae"; of paths the senders, "z" or "mlp_out".
        metric: "logit_difference", "answer_log_probability", "kl", or a `Metric`.
        method: "activation" (a run for every cell), "attribution" (one backward pass),
            "integrated_gradients" (several) or "path" (through chosen receivers alone).
        receivers: Of paths: "final", or heads' inputs such as "9.6.q".
        **options: As of `activation_patching`, `attribution_patching` or `path_patching`.

    Returns:
        One number for each pair and cell; `.table` has their means, `.frame()` all of them.

    Raises:
        ConfigError: A name or number is unknown or does not go with the component.
        DataError: A pair cannot be used with this model.
        SiteError: The architecture has no such component.

    Example:
        >>> pair = ss.PromptPair("I like the", "I hear the", answer=" a", wrong=" t")
        >>> found = ss.patch(model, [pair], "resid_pre", metric="logit_difference")
        >>> found.dims
        ('layer', 'position')
    """
    chosen = metric_named(metric)
    batch = pairs
    if not isinstance(batch, PairBatch):
        batch = encode_pairs(model, load_prompt_pairs(batch))
    if method == "activation":
        return activation_patching(model, batch, component, chosen, **options)
    if method == "path":
        return path_patching(model, batch, component, receivers, chosen, **options)
    if method not in ("attribution", "integrated_gradients"):
        raise ConfigError(
            f"method: {method!r} is unknown; choose activation, attribution, integrated_gradients "
            "or path."
        )
    found = attribution_patching(model, batch, [component], chosen, method=method, **options)
    return found[component]


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

    Raises:
        ConfigError: An argument is unknown, out of range or does not go with the component.
        DataError: There is no pair.
        SiteError: The architecture has no such component.
        MismatchError: The SAE belongs to another model.
        ModelError: Not even one patched prompt fits into memory.
        OutputError: The store cannot be written.
    """
    target = Target.of(
        model,
        component,
        layers=layers,
        heads=heads,
        sae=sae,
        features=features,
        clusters=clusters,
    )
    columns = chosen_columns(batch, component, positions, by_position)
    memory = Memory(model, batch.width, memory_gb)
    progress = progress or Progress()

    def patched(
        engine: Engine, direction: Direction
    ) -> tuple[np.ndarray, Ends, Sequence[int | str]]:
        """Return the numbers of one group of pairs, its ends, and the labels of the cells."""
        labels, chosen = engine.patch.labels, np.arange(len(engine.patch.labels))
        if target.heads is not None:
            labels, chosen = target.heads, np.asarray(target.heads)
        start = engine.ends[0]
        shape = (len(start), len(target.layers), max(1, len(chosen)))
        shape = shape if columns is None else (*shape, len(columns))
        values = np.broadcast_to(start.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()
        if columns is not None:
            # NaN where the prompt has no such position, or the other prompt none for it.
            without = ~direction.allowed.cpu().numpy()[:, columns]
            values[np.broadcast_to(without[:, None, None], values.shape)] = np.nan
        alive = engine.patch.alive
        rows = plan_rows(shape, np.asarray(target.layers), chosen, columns, alive)
        key = _rows_key(model, direction, target, metric, labels)
        with progress.task(f"patching {component}", len(rows), "rows") as task:
            for chunk, numbers in run_chunks(
                rows, memory.rows, engine, key=key, store=store, task=task
            ):
                values.flat[chunk.cell] = numbers
        return values, engine.ends, labels

    device = input_device(plain_model(model))
    whole = direction_of(batch, mode, device=device)
    blocks = block_runner(model, whole) if runs_in_blocks(model, target) else nullcontext()
    each = memory.pairs(target)
    starts = range(0, len(batch), each)
    groups = [direction_of(batch, mode, slice(at, at + each), device) for at in starts]
    with torch.inference_mode(), blocks as runner:
        if runner is None:
            progress.say(
                f"{model.cfg.model_name} cannot be patched block by block here, so every patched "
                "prompt is a whole pass; this is slower."
            )

        def engine_of(direction: Direction) -> Engine:
            if runner is None:
                return PlainEngine(model, direction, target, metric)
            return FastEngine(model, runner, direction, target, metric)

        if sae is not None and clusters is None and features is None and len(groups) > 1:
            # The features that differ in any group, so that all groups have the same labels.
            found = {int(one) for group in groups for one in engine_of(group).patch.labels}
            target = replace(target, features=tuple(sorted(found)))
        parts = [patched(engine_of(group), group) for group in groups]
    coords: dict[str, tuple[int | str, ...]] = {} if sae is not None else {"layer": target.layers}
    if parts[0][2]:
        coords[target.axis] = tuple(parts[0][2])
    if columns is not None:
        coords["position"] = tuple(columns.tolist())
    values = np.concatenate([part[0] for part in parts])
    own, source = (np.concatenate([part[1][side] for part in parts]) for side in (0, 1))
    return PatchResult.of(
        batch, "activation", component, metric.name, mode, coords, values, (own, source)
    )


def unpatched(
    model: TransformerBridge, batch: PairBatch, metric: Metric, *, max_tokens: int = 4096
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Return the metric on every pair's clean and corrupted prompt."""
    root = plain_model(model)
    clean, corrupted = (
        last_logits_in_parts(root, *batch.side(side), max_tokens=max_tokens)
        for side in ("clean", "corrupted")
    )
    answers = torch.stack([batch.right, batch.wrong], dim=1)
    sides = (scores(metric, logits, answers, clean) for logits in (clean, corrupted))
    first, second = (side.double().cpu().numpy() for side in sides)
    return first, second


def _rows_key(
    model: TransformerBridge,
    direction: Direction,
    target: Target,
    metric: Metric,
    labels: Sequence[int | str],
) -> str:
    """Return a hash of all that the rows' numbers depend on beside the rows."""
    tensors = (direction.ids, direction.mask, direction.source_ids, direction.source_mask)
    tensors += (direction.to_source, direction.answers)
    clusters = [(name, list(map(int, own))) for name, own in (target.clusters or {}).items()]
    return content_key(
        model_info(model).fingerprint,
        str(plain_model(model).dtype),
        [tensor.cpu().numpy() for tensor in tensors],
        metric.name,
        direction.mode,
        target.component,
        "" if target.sae is None else [target.sae.fingerprint, list(labels), clusters],
    )
