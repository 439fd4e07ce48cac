"""Whether a model's blocks, called one by one on windows of columns, are the model."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.blocks import trial_ids
from saesteer.models.loading import plain_model
from saesteer.patching.engine.attention import Window, windows_allowed
from saesteer.patching.engine.climb import run_whole
from saesteer.patching.engine.resume import out_of_memory
from saesteer.patching.engine.sides import Sides
from saesteer.patching.engine.steps import Steps
from saesteer.patching.prompts.batch import position_ids

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Of the logits' standard deviation; half precision rounds differently in batches of other sizes.
_TOLERANCE = {torch.float32: 1e-3}
_ROUGH = 0.2


def windows_stand(model: TransformerBridge, sides: Sides) -> bool:
    """Return whether the fast engine says what the model says, tried on one or two prompts.

    Args:
        model: A model from `load_model`.
        sides: The prompts; those with the most and the least padding are tried.
    """
    lengths = sides.mask.sum(dim=1)
    pair = torch.stack([lengths.argmin(), lengths.argmax()]).unique()
    few = Sides(*(getattr(sides, part.name)[pair] for part in fields(Sides)))
    wanted = _whole(model, few).float()
    if not _keys_alone(plain_model(model)):
        return False
    try:
        with windows_allowed(plain_model(model)):
            got = _windowed(Steps(model), few)
    except Exception as error:
        # Whatever an unknown architecture does that windows cannot: the plain loop can.
        if out_of_memory(error):
            raise
        return False
    loose = _TOLERANCE.get(plain_model(model).dtype, _ROUGH) * wanted.std()
    return bool((got - wanted).abs().max() <= loose)


def _keys_alone(plain: Any) -> bool:
    """Return whether keys and values are all that later tokens read of earlier ones."""
    said = plain(input_ids=trial_ids(plain), use_cache=True)
    caches = [value for value in said.values() if hasattr(value, "get_seq_length")]
    layers = [layer for cache in caches for layer in cache.layers]
    return bool(layers) and all(
        hasattr(layer, "keys") and not hasattr(layer, "update_conv_state") for layer in layers
    )


def _windowed(steps: Steps, sides: Sides) -> Float[Tensor, "row vocab"]:
    run = run_whole(steps, sides.ids, sides.mask, keep=True)
    width = sides.ids.shape[1]
    # In the middle of the shorter prompt, so that something stands before the window in both.
    first = width - (int(sides.mask.sum(dim=1).min()) + 1) // 2
    pair = torch.arange(len(sides.ids), device=run.last.device)
    hidden = run.residual[0][:, first:]
    for layer in range(len(steps.blocks)):
        past = run.keys[layer][:, :, :first], run.values[layer][:, :, :first]
        hidden = steps.block(layer, hidden, run.prompts, pair, first, Window(*past))
    return steps.logits(hidden[:, -1], None)


def _whole(model: TransformerBridge, sides: Sides) -> Float[Tensor, "row vocab"]:
    plain: Any = plain_model(model)
    return plain(
        input_ids=sides.ids,
        attention_mask=sides.mask.long(),
        position_ids=position_ids(sides.mask),
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]
