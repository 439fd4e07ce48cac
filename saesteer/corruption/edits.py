"""Heads and MLPs put to zero or to their mean, and noise in the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from saesteer.corruption.program import Edit, NoiseEdit
from saesteer.models import Site, plain_model
from saesteer.models.hooks import HookTarget, Removable
from saesteer.utils.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.corruption.fitted import Means


@contextmanager
def edited(
    model: TransformerBridge, edits: Sequence[Edit], means: Means | None = None
) -> Iterator[None]:
    """Apply edits to parts of the model on every pass inside, bridge and plain model alike."""
    with ExitStack() as stack:
        for edit in edits:
            for root in (plain_model(model), model.original_model):
                stack.callback(_put_on(model, root, edit, means).remove)
        yield


def part_target(
    model: TransformerBridge,
    root: Any,
    layer: int,
    part: Literal["heads", "mlps"],
    head: int | None = None,
) -> HookTarget:
    """Return where all heads of a layer write side by side, or one of them, or its MLP.

    `root` is the plain model or the bridge's own.
    """
    mapping: Any = model.adapter.component_mapping
    try:
        parts: Any = mapping["blocks"].submodules
        if part == "mlps":
            path, side, hook = parts["mlp"].name, "output", "hook_mlp_out"
        else:
            path = f"{parts['attn'].name}.{parts['attn'].submodules['o'].name}"
            side, hook = "input", "attn.hook_z"
        module = root.get_submodule(f"{mapping['blocks'].name}.{layer}.{path}")
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"layer {layer} of {model.cfg.model_name} has no separate "
            f"{'MLP' if part == 'mlps' else 'attention output'} to change; skip the layer instead."
        ) from error
    width = None if head is None else int(model.cfg.d_head)
    start = 0 if head is None else head * int(model.cfg.d_head)
    return HookTarget(root, module, side, Site(layer, hook), start=start, width=width)


def _put_on(model: TransformerBridge, root: Any, edit: Edit, means: Means | None) -> Removable:
    if isinstance(edit, NoiseEdit):
        mapping: Any = model.adapter.component_mapping
        block = root.get_submodule(f"{mapping['blocks'].name}.{edit.layer}")
        noise = partial(_noise_hook, edit, _NoiseTable(edit.seed))
        return block.register_forward_pre_hook(noise, with_kwargs=True)
    if edit.how == "mean" and means is None:
        raise ConfigError("a part is put to its mean and no means are there; see measure_means.")
    n_heads = int(model.cfg.n_heads)
    if edit.head is not None and edit.head >= n_heads:
        raise ConfigError(
            f"head {edit.layer}.{edit.head}: a layer has heads 0 to {n_heads - 1}; name another."
        )
    part = "mlps" if edit.head is None else "heads"
    target = part_target(model, root, edit.layer, part, edit.head)
    value = torch.zeros(1)
    if edit.how == "mean":
        value = target.columns(getattr(means, part)[edit.layer])
    return target.hook(lambda hidden: value.to(hidden).expand_as(hidden))


class _NoiseTable:
    """Unit vectors by position, drawn in order and kept."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._rows = torch.empty(0)

    def at(self, positions: Tensor, like: Tensor) -> Tensor:
        wanted = int(positions.max()) + 1
        if not self._rows.numel():
            self._rows = torch.empty((0, like.shape[-1]))
        if wanted > len(self._rows):
            new = torch.randn((wanted - len(self._rows), like.shape[-1]), generator=self._generator)
            self._rows = torch.cat([self._rows, new / new.norm(dim=-1, keepdim=True)])
        return self._rows[positions.cpu()].to(like)


def _noise_hook(
    edit: NoiseEdit,
    table: _NoiseTable,
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden = args[0] if args else kwargs["hidden_states"]
    positions = kwargs.get("position_ids")
    if positions is None:
        raise ModelError(
            "noise: this model does not tell its layers which positions they see; use another "
            "corruption."
        )
    unit = table.at(positions.clamp(min=0), hidden)
    noisy = hidden + edit.scale * hidden.norm(dim=-1, keepdim=True) * unit
    if args:
        return (noisy, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": noisy}
