"""Hooks: keep, replace or add at several places of a model; they always come off again.

Where nothing passes through a place that was hooked, that is an error and no quiet other number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from saesteer.utils.errors import HookError, SiteError

Hidden = Tensor
# Takes the hidden state, [batch, pos, d_model] (at a head's site the heads side by side), and
# returns a new one, or None to leave it as it is.
SiteFunction = Callable[[Hidden], "Hidden | None"]
Key = TypeVar("Key", bound=Hashable)


class Removable(Protocol):
    """A hook's handle."""

    def remove(self) -> None:
        """Take the hook off."""


@dataclass(frozen=True, order=True)
class Site:
    """One place in a model, in transformer_lens's names: a block's number and a hook inside it.

    Example:
        >>> str(ss.Site(15))
        'blocks.15.hook_resid_post'
    """

    layer: int
    hook: str = "hook_resid_post"

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.hook}"

    @property
    def between_blocks(self) -> bool:
        """Whether it is what enters or leaves a block, which needs no bridge."""
        return self.hook in ("hook_resid_pre", "hook_resid_post")

    @property
    def block_behind(self) -> int | None:
        """The block whose output it is, as `hook_resid_pre` is the one before's; None if none's."""
        layer = self.layer - (self.hook == "hook_resid_pre")
        return layer if self.between_blocks and layer >= 0 else None

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Return the site named by text such as "blocks.10.hook_resid_post"."""
        if isinstance(text, Site):
            return text
        match = re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", str(text).strip())
        if match is None:
            raise SiteError(
                f"site {text!r} is not of the form 'blocks.10.hook_resid_post'; "
                "give the block's number and the hook's name."
            )
        return cls(int(match[1]), match[2])


@dataclass(frozen=True)
class HookTarget:
    """The module to hook for a site, and the model to call so that it fires."""

    # The Hugging Face causal language model to call or to generate with.
    model: nn.Module
    # The module whose input or output is the site.
    module: nn.Module
    side: Literal["input", "output"]
    site: Site
    # The block whose output a change at the module must reach as well, where the module stands on
    # a branch beside the residual stream.
    block: nn.Module | None = None
    # The first of the module's columns that are the site's, and how many there are (None: all).
    start: int = 0
    width: int | None = None
    # Hand on the module's own tensor as it is, heads apart: what gradients are asked of.
    raw: bool = False

    def hook(self, function: SiteFunction) -> Removable:
        """Call a function with the hidden state at the site on every pass, until removed."""
        own = self._on_own_columns(function)
        if self.block is not None:
            return _hook_mid_block(own, self.module, self.block)
        return _hook(self.module, self.side, own)

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
    """Have functions called at several places; what they return is put in place.

    Where it is required, a place that no pass came through is refused at the end.
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
    """Keep what passes several places, by their names; a place that nothing passed is refused.

    `keep` says what of the hidden state; with `stop` the pass ends as soon as all of it is kept.
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
    """Let functions stand in for modules' own forwards."""
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


@contextmanager
def unhooked(*roots: nn.Module, first: int = 0) -> Iterator[None]:
    """Take torch's hooks from a number on off models, so that a trial changes nothing."""
    tables = [
        (hooks, dict(hooks))
        for root in roots
        for module in root.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ]
    for hooks, before in tables:
        for number in before:
            if number >= first:
                hooks.pop(number, None)
    try:
        yield
    finally:
        for hooks, before in tables:
            hooks.clear()
            hooks.update(before)


def first_of(output: Any) -> Tensor:
    """Return the residual stream of what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def _hook(module: nn.Module, side: str, function: SiteFunction) -> Removable:
    def on_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        changed = function(first_of(output))
        if changed is None or not isinstance(output, tuple):
            return changed
        return (changed, *output[1:])

    def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = function(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed}

    if side == "output":
        return module.register_forward_hook(on_output)
    return module.register_forward_pre_hook(on_input, with_kwargs=True)


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
    stack.callback(_hook(module, "output", at_norm).remove)
    stack.callback(_hook(block, "output", behind).remove)
    both: Any = SimpleNamespace(remove=stack.close)
    return both
