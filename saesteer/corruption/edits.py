"""Heads and MLPs put to zero or to their mean, and noise in the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saesteer.corruption.program import Edit, MlpEdit, NoiseEdit
from saesteer.corruption.reference import kept_passes, read_tensors
from saesteer.models import plain_model
from saesteer.models.blocks import first_of
from saesteer.utils.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models.tokens import TokenRow


@dataclass(frozen=True)
class Means:
    """Mean outputs over the tokens of some texts, special tokens and padding left out."""

    # For each layer what its heads write, side by side, before the output projection.
    heads: dict[int, Float[Tensor, " head_width"]]
    # For each layer what its MLP writes.
    mlps: dict[int, Float[Tensor, " d_model"]]
    # Over how many tokens.
    n_tokens: int

    def save(self, path: Path) -> None:
        """Write the means as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"heads.{i}": value.contiguous() for i, value in self.heads.items()}
        tensors |= {f"mlps.{i}": value.contiguous() for i, value in self.mlps.items()}
        save_file(tensors, path, metadata={"n_tokens": str(self.n_tokens)})

    @classmethod
    def load(cls, path: Path) -> Means:
        """Read what `save` wrote.

        Raises:
            OutputError: The file is damaged.
        """
        tensors, metadata = read_tensors(path)
        parts: dict[str, dict[int, Tensor]] = {"heads": {}, "mlps": {}}
        for name, value in tensors.items():
            part, layer = name.split(".")
            parts[part][int(layer)] = value
        return cls(parts["heads"], parts["mlps"], int(metadata["n_tokens"]))


@contextmanager
def edited(
    model: TransformerBridge, edits: Sequence[Edit], means: Means | None = None
) -> Iterator[None]:
    """Apply edits to parts of the model on every pass inside, bridge and plain model alike.

    Raises:
        ConfigError: A mean is asked for and not there, or a layer has no such head.
        ModelError: The model has no such part.
    """
    with ExitStack() as stack:
        for edit in edits:
            for root in _roots(model):
                stack.callback(_put_on(model, root, edit, means).remove)
        yield


def measure_means(
    model: TransformerBridge, rows: Sequence[TokenRow], *, max_tokens: int = 4096
) -> Means:
    """Measure every head's and MLP's mean output over texts, in one pass over them.

    The texts' kept tokens count. Layers without heads, or without an MLP of their own, are left
    out.

    Raises:
        ConfigError: No token is kept.
    """
    root: Any = _roots(model)[0]
    sums: dict[tuple[str, int], Tensor] = {}
    kept: list[Tensor] = []
    n_tokens = sum(sum(row.kept) for row in rows)
    if not n_tokens:
        raise ConfigError("means: the texts have no token to average over; give some text.")

    def add(key: tuple[str, int], value: Tensor) -> None:
        chosen = value.flatten(2)[kept[0]].double().sum(dim=0)
        sums[key] = sums[key] + chosen if key in sums else chosen

    def note(key: tuple[str, int], _module: nn.Module, args: Any, output: Any) -> None:
        # What enters the output projection, and what leaves the MLP.
        add(key, args[0] if key[0] == "o" else first_of(output))

    with ExitStack() as stack:
        for layer in range(int(model.cfg.n_layers)):
            for part in ("o", "mlp"):
                with suppress(ModelError):
                    module = _part(model, root, layer, part)
                    handle = module.register_forward_hook(partial(note, (part, layer)))
                    stack.callback(handle.remove)
        for mask, forward in kept_passes(model, rows, max_tokens=max_tokens):
            kept[:] = [mask]
            forward()
    heads = {i: (total / n_tokens).float() for (part, i), total in sums.items() if part == "o"}
    mlps = {i: (total / n_tokens).float() for (part, i), total in sums.items() if part == "mlp"}
    return Means(heads, mlps, n_tokens)


def _put_on(model: TransformerBridge, root: Any, edit: Edit, means: Means | None) -> Any:
    if isinstance(edit, NoiseEdit):
        block = root.get_submodule(f"{_blocks_name(model)}.{edit.layer}")
        noise = partial(_noise_hook, edit, _NoiseTable(edit.seed))
        return block.register_forward_pre_hook(noise, with_kwargs=True)
    is_mlp = isinstance(edit, MlpEdit)
    module = _part(model, root, edit.layer, "mlp" if is_mlp else "o")
    value = None
    if edit.how == "mean":
        if means is None:
            raise ConfigError(
                "a part is put to its mean and no means are there; see measure_means."
            )
        value = (means.mlps if is_mlp else means.heads)[edit.layer]
    if isinstance(edit, MlpEdit):
        return module.register_forward_hook(partial(_mlp_hook, value))
    n_heads = int(model.cfg.n_heads)
    if edit.head >= n_heads:
        raise ConfigError(f"head {edit.layer}.{edit.head}: a layer has heads 0 to {n_heads - 1}.")
    return module.register_forward_pre_hook(partial(_head_hook, edit.head, n_heads, value))


def _head_hook(
    head: int, n_heads: int, mean: Tensor | None, _module: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    flat = args[0].flatten(2).clone()
    width = flat.shape[-1] // n_heads
    own = slice(head * width, (head + 1) * width)
    flat[..., own] = 0 if mean is None else mean[own].to(flat)
    return (flat.reshape(args[0].shape), *args[1:])


def _mlp_hook(mean: Tensor | None, _module: nn.Module, _args: Any, output: Any) -> Any:
    first = first_of(output)
    changed = torch.zeros_like(first) if mean is None else mean.to(first).expand_as(first)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


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


def _roots(model: TransformerBridge) -> tuple[Any, Any]:
    return plain_model(model), model.original_model


def _blocks_name(model: TransformerBridge) -> str:
    mapping: Any = model.adapter.component_mapping
    return str(mapping["blocks"].name)


def _part(model: TransformerBridge, root: Any, layer: int, part: str) -> nn.Module:
    """Return a layer's MLP, or its attention's output projection ("o")."""
    mapping: Any = model.adapter.component_mapping
    parts = mapping["blocks"].submodules or {}
    try:
        names = [parts["mlp"].name]
        if part == "o":
            names = [parts["attn"].name, parts["attn"].submodules["o"].name]
        path = ".".join([_blocks_name(model), str(layer), *names])
        return root.get_submodule(path)
    except (KeyError, AttributeError) as error:
        raise ModelError(
            f"layer {layer} of {model.cfg.model_name} has no separate "
            f"{'attention output' if part == 'o' else 'MLP'} to change; skip the layer instead."
        ) from error
