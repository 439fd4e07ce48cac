"""Whether transformer_lens's bridge computes the model that it wraps: measured, once a model.

Sites inside a block are read and written in the bridge, whose adapters take a block apart. What
they make of it is not taken on trust: block by block, from the plain model's own input, the bridge
must give what the plain model gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from saesteer.models.compat import cache_argument, find_cache
from saesteer.models.hooks import HookTarget, Site, hooked, keeping, unhooked
from saesteer.models.loading import block_name, model_info
from saesteer.utils.errors import SiteError
from saesteer.utils.text import one_line

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_OUTSIDE = "use hook_resid_pre or hook_resid_post, which need no bridge"
# Two rows, the second of them padded on the left.
_LENGTH, _PADDED = 12, 3
_ALL = slice(None, None)


class _Check(NamedTuple):
    """What a model's passes through plain model and bridge showed."""

    # What is wrong with the bridge; None if it computes the same model.
    fault: str | None
    # The largest difference of its logits, in standard deviations of the plain model's; infinite
    # where it computes none, None if there is no fault.
    difference: float | None
    # For the id of each hook point that a pass reached, whether it holds a vector for each token.
    fired: Mapping[int, bool]
    # The layers where what is added in the middle of the block comes out of it changed.
    bent: frozenset[int]


_CHECKED: WeakKeyDictionary[TransformerBridge, _Check] = WeakKeyDictionary()


def bridge_difference(model: TransformerBridge) -> float | None:
    """Return by how much the bridge's logits differ from the plain model's, at most.

    It is in standard deviations of the plain model's logits, infinite where the bridge cannot run,
    and None where the two compute the same up to rounding.
    """
    return _checked(model).difference


def check_bridge(model: TransformerBridge) -> None:
    """Refuse a model whose bridge computes another one; a few short passes, once a model."""
    fault = _checked(model).fault
    if fault is not None:
        raise SiteError(f"{_name(model)}: transformer_lens's bridge {fault}; {_OUTSIDE}.")


def check_inside(model: TransformerBridge, site: Site) -> None:
    """Refuse a site inside a block that would be read or written wrongly or never."""
    check_bridge(model)
    point = id(model.hook_dict[str(site)])
    if point not in _checked(model).fired:
        # A hook point may have been switched on since, as attn.hook_result can be.
        _CHECKED.pop(model, None)
        if point not in _checked(model).fired:
            raise SiteError(
                f"site {site} is never reached in {_name(model)}, whose adapter in "
                f"transformer_lens names it and does not compute it; {_OUTSIDE}."
            )
    if site.hook == "hook_resid_mid" and site.layer in _checked(model).bent:
        raise SiteError(
            f"site {site}: {_name(model)} changes the residual stream behind the middle of its "
            "blocks, so what is added there would not come out as it is; use hook_resid_pre or "
            "hook_resid_post."
        )


def holds_tokens(model: TransformerBridge, site: Site) -> bool:
    """Return whether a site inside a block holds a vector for each token of each row."""
    return _checked(model).fired[id(model.hook_dict[str(site)])]


def _name(model: TransformerBridge) -> str:
    return f"{model_info(model).source.name} ({type(model_info(model).plain).__name__})"


def _checked(model: TransformerBridge) -> _Check:
    if model not in _CHECKED:
        info = model_info(model)
        with torch.no_grad(), unhooked(info.plain, model.original_model, first=info.own_hooks):
            _CHECKED[model] = _Comparison(model).check()
    return _CHECKED[model]


class _Comparison:
    """The passes of one check."""

    def __init__(self, model: TransformerBridge) -> None:
        self._plain: Any = model_info(model).plain
        self._bridge: Any = model.original_model
        self._points = model.hook_dict
        self._blocks = [block_name(model, layer) for layer in range(model.cfg.n_layers)]
        embedding = self._plain.get_input_embeddings().weight
        ids = torch.arange(1, 2 * _LENGTH + 1, device=embedding.device) * 7919
        self._ids = (ids % len(embedding)).view(2, _LENGTH)
        self._mask = torch.ones_like(self._ids)
        self._mask[1, :_PADDED] = 0
        # The first token of a row is many models' attention sink, which drowns all others.
        self._compared = self._mask.bool()
        self._compared[0, 0] = self._compared[1, _PADDED] = False
        self._tolerance = max(1e-3, 4 * torch.finfo(embedding.dtype).eps)
        # What blocks read of their input and what their MLPs read; given again while held fast.
        self._read: dict[nn.Module, Any] = {}
        self._held = False

    def check(self) -> _Check:
        inputs, wanted, logits = self._pass(self._plain)
        try:
            fired: dict[int, bool] = {}
            with ExitStack() as stack:
                for point in set(self._points.values()):
                    stack.callback(point.register_forward_hook(self._noting(fired)).remove)
                for layer in self._middles():
                    self._hold(layer, stack)
                own, got, theirs = self._pass(self._bridge, inputs)
                bent = self._bent(inputs, got)
            place = self._first_off((inputs[0], *wanted, logits), (own[0], *got, theirs))
            if place is None:
                steps = [self._step(root, inputs) for root in (self._plain, self._bridge)]
                place = self._first_off(*steps, columns=slice(-1, None))
                place = place and f"with a cache, {place}"
            if place is None:
                return _Check(None, None, fired, bent)
            free = self._pass(self._bridge)[2]
            spread = logits[self._compared].std()
            difference = ((free - logits)[self._compared].abs().max() / spread).item()
            why = f"computes another model ({place}; its logits differ by {difference:.2g} of "
            return _Check(f"{why}their spread)", difference, fired, bent)
        except Exception as error:
            why = f"cannot run it ({type(error).__name__}: {one_line(error, 120)})"
            return _Check(why, float("inf"), {}, frozenset())

    def _step(self, root: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return what the last token alone gives after a cache of those before it."""
        cached: list[Any] = []
        self._pass(root, inputs, slice(None, -1), cached)
        own, got, logits = self._pass(root, inputs, slice(-1, None), cached)
        return [own[0], *got, logits]

    def _pass(
        self,
        root: Any,
        given: Sequence[Tensor] | None = None,
        columns: slice = _ALL,
        cached: list[Any] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return every block's input and output and the logits."""
        places: dict[tuple[str, int], HookTarget] = {}
        for layer, name in enumerate(self._blocks):
            block, before = root.get_submodule(name), Site(layer, "hook_resid_pre")
            places["input", layer] = HookTarget(root, block, "input", before)
            places["output", layer] = HookTarget(root, block, "output", Site(layer))
        instead = [
            (places["input", layer], lambda _, hidden=hidden: hidden[:, columns])
            for layer, hidden in enumerate(given or ())
        ]
        with keeping(places, keep=Tensor.clone) as kept, hooked(instead):
            cache = cache_argument(root, cached.pop()) if cached else {}
            output = root(
                input_ids=self._ids[:, columns],
                attention_mask=self._mask[:, : columns.stop],
                use_cache=cached is not None,
                **cache,
            )
        if cached is not None:
            cached.append(find_cache(output))
        inputs, outputs = (
            [kept[side, layer] for layer in range(len(self._blocks))]
            for side in ("input", "output")
        )
        return inputs, outputs, output.logits.float()

    def _first_off(
        self, wanted: Sequence[Tensor], got: Sequence[Tensor], columns: slice = _ALL
    ) -> str | None:
        """Return where the bridge first gives something else, and by how much of its size."""
        names = ["the embedding", *(f"block {n}" for n in range(len(self._blocks))), "the head"]
        compared = self._compared[:, columns]
        for name, right, ours in zip(names, wanted, got, strict=True):
            right, ours = right.float()[compared], ours.float()[compared]
            off = (ours - right).square().mean().sqrt() / right.square().mean().sqrt()
            if not off <= self._tolerance:
                return f"{name} gives another result, off by {off:.2g} of its size"
        return None

    def _noting(self, fired: dict[int, bool]) -> Callable[..., None]:
        def note(point: nn.Module, inputs: Any, output: Any) -> None:
            fired[id(point)] = isinstance(output, Tensor) and output.shape[:2] == self._ids.shape

        return note

    def _middles(self) -> list[int]:
        layers = range(len(self._blocks))
        return [n for n in layers if f"blocks.{n}.hook_resid_mid" in self._points]

    def _hold(self, layer: int, stack: ExitStack) -> None:
        """Keep what a block reads of its input and what its MLP reads, and give both again."""
        point = self._points[f"blocks.{layer}.hook_resid_mid"]
        first: list[nn.Module] = []

        def at(part: nn.Module, inputs: Any, output: Any) -> Any:
            first.append(part)
            if part not in (first[0], point):
                return None
            if not self._held:
                self._read[part] = _copied(output)
            return self._read[part]

        block: Any = self._bridge.get_submodule(self._blocks[layer]).original_component
        for part in (*block.children(), point):
            stack.callback(part.register_forward_hook(at).remove)

    def _bent(self, inputs: list[Tensor], outputs: list[Tensor]) -> frozenset[int]:
        """Return the layers whose residual stream is more than a sum behind its middle.

        What its attention and its MLP read is held fast, so a change of the block's input must come
        out of it as it is.
        """
        # Exact in every dtype, and no multiple of the input, to which a norm would be blind.
        signs = torch.where(torch.arange(inputs[0].shape[-1]) % 2 == 0, 1.0, -1.0)
        changed = [hidden * signs.to(hidden) for hidden in inputs]
        self._held = True
        after = self._pass(self._bridge, changed)[1]
        bent = set()
        for layer in self._middles():
            before, given = inputs[layer].float(), changed[layer].float()
            off = after[layer].float() - outputs[layer].float() - (given - before)
            size = given.abs() + after[layer].float().abs()
            share = (off / size.clamp_min(1e-30))[self._compared]
            if not share.square().mean().sqrt() <= self._tolerance:
                bent.add(layer)
        return frozenset(bent)


def _copied(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_copied(part) for part in output)
    return output.clone() if isinstance(output, Tensor) else output
