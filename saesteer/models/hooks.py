"""Hooks: keep, replace or add at several places of a model; they always come off again.

Where nothing passes through a place that was hooked, that is an error and no quiet other number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from saesteer.utils.errors import HookError, SiteError

if TYPE_CHECKING:
    from saesteer.models.sites import Site

Hidden = Tensor
# Takes the hidden state, [batch, pos, d_model] (at a head's site the heads side by side), and
# returns a new one, or None to leave it as it is.
SiteFunction = Callable[[Hidden], "Hidden | None"]
Key = TypeVar("Key", bound=Hashable)


class Removable(Protocol):
    """A hook's handle."""

    def remove(self) -> None:
        """Take the hook off."""


@dataclass(frozen=True)
class HookTarget:
    """The module to hook for a site, and the model to call so that it fires.

    Attributes:
        model: The Hugging Face causal language model to call or to generate with.
        module: The module whose input or output is the site.
        side: Which of the two.
        site: The site it stands for.
        block: The block whose output a change at the module must reach as well, where the module
            stands on a branch beside the residual stream.
        start: The first of the module's columns that are the site's.
        width: How many there are; all if None.
        raw: Hand on the module's own tensor as it is, heads apart: what gradients are asked of.
    """

    model: nn.Module
    module: nn.Module
    side: Literal["input", "output"]
    site: Site
    block: nn.Module | None = None
    start: int = 0
    width: int | None = None
    raw: bool = False

    def hook(self, function: SiteFunction) -> Removable:
        """Call a function with the hidden state at the site on every forward pass.

        Returns:
            The handle; call its remove() to take the hook off.

        Raises:
            SiteError: On the pass: what is there is not laid out by prompt and token.
        """
        own = self._on_own_columns(function)
        if self.block is not None:
            return _hook_mid_block(own, self.module, self.block)
        if self.side == "output":
            return self.module.register_forward_hook(_on_output(own))
        return self.module.register_forward_pre_hook(_on_input(own), with_kwargs=True)

    def columns(self, whole: Tensor) -> Tensor:
        """Return the site's own columns of the module's tensor."""
        if self.width is None:
            return whole
        return whole[..., self.start : self.start + self.width]

    def _on_own_columns(self, function: SiteFunction) -> SiteFunction:
        def on_whole(whole: Tensor) -> Tensor | None:
            if whole.ndim < 3:
                # Some architectures (OPT) lay the tokens of all prompts end to end.
                raise SiteError(
                    f"site {self.site} holds no vector for each token; choose another one."
                )
            if self.raw:
                return function(whole)
            flat = whole if whole.ndim == 3 else whole.flatten(2)
            changed = function(self.columns(flat))
            if changed is None:
                return None
            if self.width is not None:
                stop = self.start + self.width
                changed = torch.cat([flat[..., : self.start], changed, flat[..., stop:]], dim=-1)
            return changed if whole.ndim == 3 else changed.reshape(whole.shape)

        return on_whole


@contextmanager
def hooked(
    functions: Iterable[tuple[HookTarget, SiteFunction]], *, required: bool = True
) -> Iterator[None]:
    """Have functions called at several places for as long as the context lasts.

    Args:
        functions: The places, each with what is called there; what it returns is put in place.
        required: Refuse, at the end, a place that no pass came through.

    Raises:
        HookError: Nothing passed through a place.
    """
    reached: set[int] = set()
    sites = []

    def noting(number: int, function: SiteFunction) -> SiteFunction:
        def noted(hidden: Hidden) -> Hidden | None:
            reached.add(number)
            return function(hidden)

        return noted

    with ExitStack() as stack:
        for number, (target, function) in enumerate(functions):
            sites.append(target.site)
            stack.callback(target.hook(noting(number, function)).remove)
        yield
    missing = [str(site) for number, site in enumerate(sites) if number not in reached]
    if missing and required:
        raise HookError(f"nothing passed through {', '.join(missing)}; choose another site.")


class _Stop(Exception):
    """Ends a forward pass once everything was kept."""


@contextmanager
def keeping(
    targets: Mapping[Key, HookTarget],
    *,
    keep: Callable[[Tensor], Tensor] = Tensor.detach,
    stop: bool = False,
) -> Iterator[dict[Key, Tensor]]:
    """Keep what passes several places for as long as the context lasts.

    Args:
        targets: The places by name.
        keep: What to keep of the hidden state.
        stop: End the pass as soon as all of it is kept.

    Yields:
        What was kept by name; filled by the pass.

    Raises:
        HookError: Nothing passed through a place.
    """
    kept: dict[Key, Tensor] = {}

    def keeper(key: Key) -> SiteFunction:
        def function(hidden: Hidden) -> None:
            kept[key] = keep(hidden)
            if stop and len(kept) == len(targets):
                raise _Stop(kept)

        return function

    with hooked((target, keeper(key)) for key, target in targets.items()):
        try:
            yield kept
        except _Stop as end:
            # What is kept around this pass ends it by an exception of its own.
            if end.args[0] is not kept:
                raise


@contextmanager
def standing_in(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let functions stand in for modules' own forwards for as long as the context lasts."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own


def _on_output(function: SiteFunction) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            changed = function(output[0])
            return None if changed is None else (changed, *output[1:])
        return function(output)

    return hook


def _on_input(function: SiteFunction) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            changed = function(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        changed = function(kwargs["hidden_states"])
        return None if changed is None else (args, {**kwargs, "hidden_states": changed})

    return hook


def _hook_mid_block(function: SiteFunction, module: nn.Module, block: nn.Module) -> Removable:
    # transformer_lens takes the middle of a block at the MLP's norm, which only the MLP reads: the
    # residual stream itself runs past it, so the change is added to it behind the block.
    change: list[Hidden | None] = [None]

    def at_norm(hidden: Hidden) -> Hidden | None:
        changed = function(hidden)
        change[0] = None if changed is None else changed - hidden
        return changed

    def behind(hidden: Hidden) -> Hidden | None:
        return None if change[0] is None else hidden + change[0]

    stack = ExitStack()
    stack.callback(module.register_forward_hook(_on_output(at_norm)).remove)
    stack.callback(block.register_forward_hook(_on_output(behind)).remove)
    return _Handles(stack)


class _Handles:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def remove(self) -> None:
        self._stack.close()
