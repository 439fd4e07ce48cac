"""Rows of tokens to logits, padded on either side, and settings to generate from them.

Hook what is to be kept or changed meanwhile.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from saesteer.utils.errors import ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig


def position_ids(mask: Shaped[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """Return every token's place counted from its row's first real token; 0 at padding."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def check_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinity where what a model computes is first seen."""
    if not bool(torch.isfinite(values).all()):
        dtype = str(values.dtype).removeprefix("torch.")
        ways = "dtype bfloat16 or float32" if values.dtype == torch.float16 else "dtype float32"
        raise ModelError(
            f"{what} hold NaN or infinity in {dtype}; load the model with {ways}, or use a weaker "
            "strength where it is steered."
        )


def all_logits(
    root: Any, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"], **wanted: Any
) -> Float[Tensor, "row pos vocab"]:
    """Run rows and return the logits behind every token; see `run_rows`."""
    return run_rows(root, ids, mask, use_cache=False, **wanted).logits


def run_rows(
    root: Any,
    ids: Int[Tensor, "row pos"],
    mask: Shaped[Tensor, "row past+pos"],
    *,
    use_cache: bool,
    **wanted: Any,
) -> Any:
    """Run rows and return what the model gives.

    `root` is a Hugging Face causal language model: `plain_model(model)`, or the bridge's own
    `model.original_model`. The mask covers what is in a cache too. What else is wanted is given to
    a model that takes it.
    """
    places = position_ids(mask)[:, -ids.shape[1] :]
    wanted |= {"attention_mask": mask.long(), "position_ids": places}
    # Models with ALiBi take no position ids, and a few compute all logits or none.
    taken = inspect.signature(root.forward).parameters
    known = {name: value for name, value in wanted.items() if name in taken}
    return root(input_ids=ids, use_cache=use_cache, **known)


def takes(root: Any, name: str) -> bool:
    """Whether a model's forward has an argument of that name."""
    return name in inspect.signature(root.forward).parameters


def last_logits(
    root: Any, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]
) -> Float[Tensor, "row vocab"]:
    """Run left-padded rows and return the logits behind their last tokens; see `all_logits`."""
    return all_logits(root, ids, mask, logits_to_keep=1)[:, -1]


def last_logits_in_parts(
    root: Any,
    ids: Int[Tensor, "row pos"],
    mask: Bool[Tensor, "row pos"],
    *,
    max_tokens: int = 4096,
) -> Float[Tensor, "row vocab"]:
    """Return `last_logits` without gradient, at most so many tokens in one pass."""
    with torch.no_grad():
        parts = [last_logits(root, ids[p], mask[p]) for p in slices(ids, max_tokens)]
    return torch.cat(parts)


def slices(rows: Shaped[Tensor, "row pos"], max_tokens: int) -> Iterator[slice]:
    """Yield slices that cover rows, padding included with at most so many tokens each."""
    count, width = rows.shape
    each = max(1, max_tokens // max(1, width))
    for start in range(0, count, each):
        yield slice(start, min(start + each, count))


def greedy_settings(
    max_new_tokens: int, *, ends: int | Sequence[int] | None, pad: int
) -> GenerationConfig:
    """Return settings for plain greedy generation.

    Everything that the model's own configuration could slip in is set: a repetition penalty, for
    one, would be measured as an effect of what was done to the model.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends if ends is None or isinstance(ends, int) else list(ends),
        pad_token_id=pad,
    )
