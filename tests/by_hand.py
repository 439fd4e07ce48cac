"""What saesteer does, done with torch's own hooks on plain modules: the reference of many tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def changed(
    module: nn.Module, change: Callable[[Tensor], Tensor], side: str = "output"
) -> Iterator[None]:
    """Let a function change the hidden state that enters or leaves a module."""

    def leaving(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    def entering(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    if side == "output":
        handle = module.register_forward_hook(leaving)
    else:
        handle = module.register_forward_pre_hook(entering, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def added(
    module: nn.Module, vector: Tensor, where: slice = slice(None), side: str = "output"
) -> Any:
    """Add a vector, or a tensor [batch, pos, d_model], at some columns."""

    def change(hidden: Tensor) -> Tensor:
        new = hidden.clone()
        new[:, where] += vector
        return new

    return changed(module, change, side)


def count_hooks(model: Any) -> int:
    """Return how many hooks a bridge and its plain model have."""
    from saesteer.models import plain_model

    roots = (plain_model(model), model, model.original_model)
    modules = [module for root in roots for module in root.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
