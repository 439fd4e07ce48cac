"""Patch results made by hand, with effects that the tests know."""

from __future__ import annotations

import numpy as np
import torch

from saesteer.patching.batch import PairBatch
from saesteer.patching.pairs import PromptPair
from saesteer.patching.result import PatchResult

PLACES = ("first token", "words that differ", "same end", "answer position")


def result(
    values: np.ndarray,
    dims: tuple[str, ...],
    *,
    clean: np.ndarray | None = None,
    corrupted: np.ndarray | None = None,
    **fields,
) -> PatchResult:
    """A result over the values [pair, *dims]; clean 1 and corrupted 0 unless given."""
    pairs = len(values)
    coords = {dim: tuple(range(n)) for dim, n in zip(dims, values.shape[1:], strict=True)}
    known: dict = {
        "method": "activation",
        "component": "resid_pre",
        "mode": "denoising",
        "metric": "logit_difference",
        "coords": coords | fields.pop("coords", {}),
        "pairs": tuple(f"pair {i}" for i in range(pairs)),
        "clean": np.ones(pairs) if clean is None else clean,
        "corrupted": np.zeros(pairs) if corrupted is None else corrupted,
    }
    return PatchResult(values=values, **{**known, **fields})


def handover(
    layers: int = 10, *, pairs: int = 12, at: int = 6, noise: float = 0.02, **fields
) -> PatchResult:
    """The residual stream of a made-up model: at block `at` the words hand over to the answer."""
    rng = np.random.default_rng(0)
    values = np.zeros((pairs, layers, len(PLACES)))
    for layer in range(layers):
        told = 1 / (1 + np.exp(-2.0 * (layer - at + 0.5)))
        values[:, layer, 1], values[:, layer, 3] = 1 - told, told
    values += noise * rng.normal(size=values.shape)
    return result(values, ("layer", "place"), coords={"place": PLACES}, **fields)


def batch() -> PairBatch:
    """Two pairs of unequal lengths: "b The cat is" against "b The old dog is", and equal ones."""
    clean = (("", "b", "The", "cat", "is"), ("b", "A", "red", "hat", "is"))
    corrupted = (("b", "The", "old", "dog", "is"), ("b", "A", "blue", "hat", "is"))

    def masks(words: tuple[tuple[str, ...], ...]) -> torch.Tensor:
        return torch.tensor([[word != "" for word in row] for row in words])

    ids = torch.zeros(2, 5, dtype=torch.long)
    return PairBatch(
        pairs=(
            PromptPair("The cat is", "The old dog is", " a", " b"),
            PromptPair("A red hat is", "A blue hat is", " a", " b"),
        ),
        clean=ids,
        corrupted=ids,
        clean_mask=masks(clean),
        corrupted_mask=masks(corrupted),
        to_clean=torch.tensor([[1, 2, -1, -1, 4], [0, 1, 2, 3, 4]]),
        right=torch.zeros(2, dtype=torch.long),
        wrong=torch.ones(2, dtype=torch.long),
        clean_words=clean,
        corrupted_words=corrupted,
    )
