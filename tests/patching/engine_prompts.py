"""Made-up pairs of token rows, and a patching loop that knows nothing of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from saesteer.patching.batch import PairBatch
from saesteer.patching.pairs import PromptPair

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
}
EQUAL = ((8, 8), (8, 8))
UNEQUAL = ((8, 6), (5, 7))


def made_up_batch(
    lengths: Sequence[tuple[int, int]], *, prefix: int = 2, seed: int = 0
) -> PairBatch:
    """Pairs of random tokens that begin alike; ends of equal length stand for each other."""
    random = torch.Generator().manual_seed(seed)
    width = max(max(pair) for pair in lengths)
    shape = (len(lengths), width)
    ids = [torch.zeros(shape, dtype=torch.long) for _ in range(2)]
    masks = [torch.zeros(shape, dtype=torch.bool) for _ in range(2)]
    to_clean = torch.full(shape, -1)
    for i, (n, m) in enumerate(lengths):
        clean = torch.randint(5, 300, (n,), generator=random)
        corrupted = torch.randint(5, 300, (m,), generator=random)
        corrupted[:prefix] = clean[:prefix]
        for side, row in enumerate((clean, corrupted)):
            ids[side][i, width - len(row) :] = row
            masks[side][i, width - len(row) :] = True
        for at in range(prefix):
            to_clean[i, width - m + at] = width - n + at
        for back in range(1, min(n, m) - prefix + 1):
            to_clean[i, width - back] = width - back
    answers = torch.randint(5, 300, (2, len(lengths)), generator=random)
    words = [
        tuple(
            tuple(f"t{token}" if real else "" for token, real in zip(*row, strict=True))
            for row in zip(tokens.tolist(), mask.tolist(), strict=True)
        )
        for tokens, mask in zip(ids, masks, strict=True)
    ]
    pair = PromptPair("clean", "corrupted", " yes", " no")
    pairs, (right, wrong) = (pair,) * len(lengths), answers
    return PairBatch(
        pairs, ids[0], ids[1], masks[0], masks[1], to_clean, right, wrong, words[0], words[1]
    )


def unpadded(
    batch: PairBatch, i: int, mode: str = "denoising"
) -> tuple[torch.Tensor, torch.Tensor, dict[int, int], int]:
    """One pair's source and destination, from which place of the source each of the destination's
    is patched, and the destination's first column."""
    clean, corrupted = (
        batch.clean[i][batch.clean_mask[i]],
        batch.corrupted[i][batch.corrupted_mask[i]],
    )
    start_clean, start = batch.width - len(clean), batch.width - len(corrupted)
    steps = {b - start: a - start_clean for b, a in enumerate(batch.to_clean[i].tolist()) if a >= 0}
    if mode == "noising":
        return corrupted, clean, {a: b for b, a in steps.items()}, start_clean
    return clean, corrupted, steps, start


def one_by_one(
    model: Any, batch: PairBatch, component: str, mode: str, *, by_position: bool
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every cell's logit difference, each from a pass over one prompt without any padding.

    Yields:
        The cell (pair, layer[, head][, position]) and its number.
    """
    for i in range(len(batch)):
        source, own, steps, start = unpadded(batch, i, mode)
        with torch.no_grad():
            _, cache = model.run_with_cache(source[None])
        for layer in range(model.cfg.n_layers):
            name = f"blocks.{layer}.{HOOKS[component]}"
            for cell, change in _cells(cache[name], component, steps, by_position):
                with torch.no_grad():
                    logits = model.run_with_hooks(own[None], fwd_hooks=[(name, change)])
                said = logits[0, -1, batch.right[i]] - logits[0, -1, batch.wrong[i]]
                head, at = cell
                place = (i, layer, *head, *(start + p for p in at))
                yield place, float(said)


def _cells(source: Any, component: str, steps: dict[int, int], by_position: bool) -> Iterator[Any]:
    pattern = component == "pattern"
    headed = component in ("z", "q", "k", "v", "pattern")
    count = source.shape[1 if pattern else 2] if headed else 0
    heads: list[tuple[int, ...]] = [(h,) for h in range(count)] if headed else [()]
    for head in heads:
        for group in [[at] for at in steps] if by_position or not headed else [list(steps)]:

            def change(now: Any, hook: Any, head: Any = head, group: Any = group) -> Any:
                # In place, so that what stands behind the hook point in the stream changes too.
                for b in group:
                    if not pattern:
                        now[(0, b, *head)] = source[(0, steps[b], *head)]
                        continue
                    row = torch.zeros_like(now[0, head[0], b])
                    for key, its in steps.items():
                        row[key] = source[0, head[0], steps[b], its]
                    now[0, head[0], b] = row
                return now

            yield (head, group if by_position or not headed else []), change


def filled(cells: Iterator[tuple[tuple[int, ...], float]], shape: tuple[int, ...]) -> np.ndarray:
    """The cells as an array, NaN where there is none."""
    values = np.full(shape, np.nan)
    for place, number in cells:
        values[place] = number
    return values
