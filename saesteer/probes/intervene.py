"""Interventions on the residual stream while a `with` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from saesteer.models.compat import watching_generate
from saesteer.models.loading import made_on_other_weights, model_info
from saesteer.models.sites import HookTarget, Site, all_targets
from saesteer.probes.clean import CleanReadings, alpha_of
from saesteer.probes.interventions import Intervention
from saesteer.probes.steps import StepMask
from saesteer.steering.positions import SteeringMask
from saesteer.utils.errors import HookError, MismatchError, SteeringError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Policy = Literal["once", "compound"]
_RESIDUAL = ("hook_resid_pre", "hook_resid_post")


@contextmanager
def intervene(
    model: TransformerBridge,
    interventions: Intervention | Sequence[Intervention],
    *,
    policy: Policy = "once",
    positions: str | None = None,
    prompt_length: int | None = None,
) -> Iterator[None]:
    """Carry out interventions in every forward pass inside the block.

    It works on the plain Hugging Face model (a forward pass or `generate`) and, at the residual
    stream, on the bridge. Padding, BOS and other special tokens are never written to. Hooks come
    off however the block is left.

    With several layers the policy says which alpha counts. "once": alpha' is worked out from the
    reading that the model would have had without any intervention, so that wherever it is written
    each layer reads as one single intervention would leave it; flips neither undo nor compound
    each other. This takes a second, clean pass beside each pass. "compound": alpha' is worked out
    from the running reading, which earlier layers have changed already; n flips of scale s may
    come to s**n or cancel. At one layer the two are the same.

    Args:
        model: A model from `load_model`.
        interventions: One or several, at one site or at several; at a site they follow one another
            in the order given.
        policy: Which alpha counts.
        positions: Where to write: "from_last_prompt_token", "all" or "generated"; each vector's
            own positions if None.
        prompt_length: The prompt's width in columns, left padding included; worked out from the
            forward passes if None.

    Raises:
        SteeringError: There is no intervention, or no such policy or position.
        MismatchError: A vector is of another model or width.
        SiteError: The model has no such site.
        HookError: The block ended and no forward pass reached a site, or none held a token to
            write to; or it cannot be told which columns of the whole text a pass holds.
    """
    chosen = (interventions,) if isinstance(interventions, Intervention) else tuple(interventions)
    if not chosen:
        raise SteeringError("there are no interventions; give at least one.")
    if policy not in ("once", "compound"):
        raise SteeringError(f"policy {policy!r} is unknown; use 'once' or 'compound'.")
    groups: dict[Site, list[Intervention]] = {}
    for item in chosen:
        _check_belongs(model, item)
        groups.setdefault(item.vector.site, []).append(item)
    writers = {site: _Writer(site, items) for site, items in sorted(groups.items())}
    rig = _Rig(model, writers, policy, positions, prompt_length)
    with ExitStack() as stack:
        for site in writers:
            for target in all_targets(model, site):
                rig.attach(stack, target)
        yield
    for writer in writers.values():
        if not writer.fired:
            raise HookError(
                f"the intervention at {writer.site} never took place: no forward pass of this "
                "model reached it; run or generate with this model inside the with block."
            )
    rig.check_reached()


@dataclass
class _Pass:
    """What is known of the pass that is running, for one of the bridge's two models."""

    steps: StepMask
    masks: dict[str, SteeringMask]
    clean: CleanReadings | None
    special: Tensor | None = None


class _Rig:
    """Hangs observers on a model once, and writers on its sites."""

    def __init__(
        self,
        model: TransformerBridge,
        writers: dict[Site, _Writer],
        policy: Policy,
        positions: str | None,
        prompt_length: int | None,
    ) -> None:
        self._writers = writers
        self._positions = positions
        self._prompt_length = prompt_length
        self._policy = policy
        self._special = _special_ids(model)
        self._passes: dict[int, _Pass] = {}

    def attach(self, stack: ExitStack, target: HookTarget) -> None:
        """Hook one site of one model."""
        writer = self._writers[target.site]
        state = self._passes.get(id(target.model)) or self._observe(stack, target.model)
        stack.callback(target.hook(writer.writing(state, self._mask)).remove)

    def _observe(self, stack: ExitStack, model: nn.Module) -> _Pass:
        several = len(self._writers) > 1 and self._policy == "once"
        clean = None
        if several:
            clean = CleanReadings({s: w.directions for s, w in self._writers.items()})
        state = _Pass(StepMask(self._prompt_length), {}, clean)
        names = {
            self._positions or i.vector.positions for w in self._writers.values() for i in w.items
        }
        for name in sorted(names):
            state.masks[name] = SteeringMask(name, prompt_length=self._prompt_length)
        self._passes[id(model)] = state

        for mask in (state.steps, *state.masks.values()):
            stack.enter_context(mask.watching(model))

        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            state.special = None if ids is None else torch.isin(ids, self._special.to(ids.device))
            if clean is not None:
                clean.observe(module, args, kwargs, state.steps.past)

        handle = model.register_forward_pre_hook(observe, with_kwargs=True)
        stack.callback(handle.remove)
        if clean is not None:
            handle = model.register_forward_hook(clean.conclude)
            stack.callback(handle.remove)
            stack.enter_context(watching_generate(model, clean))
        return state

    def check_reached(self) -> None:
        """Check that every kind of positions chose some token."""
        for state in self._passes.values():
            for name, mask in state.masks.items():
                mask.check_reached(f"an intervention at positions {name!r}")

    def _mask(self, state: _Pass, item: Intervention, hidden: Tensor) -> Tensor:
        """Return where one intervention is written, [batch, pos]."""
        batch, width = hidden.shape[:2]
        name = self._positions or item.vector.positions
        where = torch.ones((batch, width), dtype=torch.bool, device=hidden.device)
        found = state.masks[name].mask(batch, hidden.device)
        if found is not None:
            where = where & found[..., 0]
        if state.special is not None:
            where = where & ~state.special.to(hidden.device)
        if not item.whole:
            where = where & item.covers(state.steps.steps(hidden.device))
        return where


class _Writer:
    """Carries out one site's interventions."""

    def __init__(self, site: Site, items: Sequence[Intervention]) -> None:
        self.site = site
        self.items = list(items)
        self.fired = False
        self.directions = [_unit(item.vector.direction) for item in items]

    def writing(
        self, state: _Pass, mask: Callable[[_Pass, Intervention, Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor | None]:
        """Return the function to hook at the site."""

        def write(hidden: Tensor) -> Tensor | None:
            self._check_shape(hidden)
            if state.clean is not None and state.clean.running:
                state.clean.note(self.site, hidden)
                return None
            self.fired = True
            clean = None if state.clean is None else state.clean.alphas(self.site)
            return self._changed(hidden, clean, lambda item: mask(state, item, hidden))

        return write

    def _changed(
        self,
        hidden: Tensor,
        clean: list[Tensor] | None,
        where: Callable[[Intervention], Tensor],
    ) -> Tensor:
        x = hidden.to(torch.float32)
        touched = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        # Along one direction, what an earlier intervention of this site meant to leave.
        meant: dict[bytes, Tensor] = {}
        for place, (item, v) in enumerate(zip(self.items, self.directions, strict=True)):
            direction = v.to(hidden.device)
            alpha = alpha_of(x, direction)
            key = v.numpy().tobytes()
            source = meant.get(key, alpha if clean is None else clean[place])
            chosen = where(item)
            target = torch.where(chosen, item.target(source), source)
            meant[key] = target
            change = torch.where(chosen, target - alpha, torch.zeros_like(alpha))
            x = x + change[..., None] * direction
            touched = touched | chosen
        # Positions that nothing was written to keep their very bits.
        return torch.where(touched[..., None], x.to(hidden.dtype), hidden)

    def _check_shape(self, hidden: Tensor) -> None:
        for item in self.items:
            if hidden.ndim != 3 or hidden.shape[-1] != item.vector.d_model:
                raise MismatchError(
                    f"the vector is {item.vector.d_model} wide and the hidden state at {self.site} "
                    f"has shape {tuple(hidden.shape)}; use a vector of this site of this model."
                )


def _unit(direction: Tensor) -> Tensor:
    exact = direction.detach().cpu().to(torch.float64)
    return (exact / exact.norm()).to(torch.float32)


def _special_ids(model: TransformerBridge) -> Tensor:
    tokenizer: Any = model.tokenizer
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return torch.tensor(sorted(marked | set(tokenizer.all_special_ids)), dtype=torch.long)


def _check_belongs(model: TransformerBridge, item: Intervention) -> None:
    info = model_info(model)
    vector = item.vector
    width = int(model.cfg.d_model)
    if vector.site.hook in _RESIDUAL and vector.d_model != width:
        raise MismatchError(
            f"vector {vector.name!r} of model {vector.model} is {vector.d_model} wide and this "
            f"model's residual stream {width}; load the model that the vector was made on."
        )
    if made_on_other_weights(model, vector.model, vector.model_fingerprint):
        raise MismatchError(
            f"vector {vector.name!r} was made on other weights (model {vector.model}) than this "
            f"model's ({info.source.name}); load that model."
        )
