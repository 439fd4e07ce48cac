"""Texts prepared once for many passes under different steering."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.forward import run_rows
from saesteer.models.hooks import HookTarget, hooked, standing_in
from saesteer.models.loading import block_name, plain_model
from saesteer.models.placement import trim_memory
from saesteer.models.prefix import Prefix, behind, kept_prefixes
from saesteer.models.sites import Site, resolve_target
from saesteer.models.tokens import (
    TokenRow,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.steering.apply import steer
from saesteer.steering.strength import Unit
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering.vector import SteeringVector

# Logits of one pass, 134 MB in float32: gradients and log-probabilities hold several such arrays.
MOST_LOGITS = 2**25
MOST_LOGITS_BESIDE_A_CPU = 2**28

# Of each row the states that logits are wanted of.
Beside = Sequence[Float[Tensor, "*states token width"]]
# From each row's number of prompt tokens to the `with` block that its batch runs in.
Editing = Callable[[Int[Tensor, " row"]], AbstractContextManager[Any]]


class Pass(NamedTuple):
    """The scored tokens of one batch of rows after a forward pass, row by row."""

    # The rows' places in the caller's order.
    index: list[int]
    # What the model says where each scored token comes next.
    logits: Float[Tensor, "token vocab"]
    # The scored tokens, and each one's row in this batch.
    after: Int[Tensor, " token"]
    row: Int[Tensor, " token"]
    # What the model says after the states given as `beside`.
    beside: Float[Tensor, "*states token vocab"] | None = None


class _Block(NamedTuple):
    """Rows that run together behind their prefixes."""

    # The rows' places in the caller's order.
    index: list[int]
    # Which row of the cache holds each one's prefix.
    prefixes: list[int]
    # What follows the prefixes, right-padded.
    ids: Tensor
    # Over left-padded prefixes and the rest: 1 at real tokens.
    attention: Tensor
    # True where the NEXT token is one to score.
    scored: Tensor
    # Over prefixes and rest: True from the last prompt token on, never at padding.
    steered: Tensor
    # Each row's number of columns before the first scored one.
    prompts: Tensor


class _Reached(Exception):
    """Ends a pass below the steered site, with what the last block there gives."""


class TeacherForced:
    """Rows prepared once for many passes under different steering.

    What every steered pass shares is computed once. Steering starts at the last prompt token, so
    the keys and values of everything before it are the same under every vector and strength: they
    are kept, once for all rows with the same prompt. And the blocks below the steered sites see
    nothing of the steering, so passes start at the first of them.

    Args:
        rows: Prompts with answers; the kept tokens are the answer's and must be its last tokens.
        site: Where passes will be steered, or several sites; steering below works but shares less.
            Without one a single pass is expected, and only prompts that rows share are kept.
        max_tokens: The most tokens in a batch; fewer where their logits would take much memory.
        share_prefix: Whether what stands before a row's last prompt token may be kept.

    Raises:
        DataError: There is no row, or one has no token to score.
    """

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[TokenRow],
        *,
        site: Site | Sequence[Site] | None = None,
        max_tokens: int = 4096,
        share_prefix: bool = True,
    ) -> None:
        _check_rows(rows)
        self._bridge = model
        self._sites = (site,) if isinstance(site, Site) else tuple(site or ())
        self._model: Any = self._running_at(self._sites)
        self._lower = _lower_blocks(model, self._targets(self._model))
        self._max_tokens, self.n_sites = max_tokens, len(self._sites)
        self._cache, prefixes = None, [()] * len(rows)
        if share_prefix:
            # Whatever mode the caller is in, gradients may pass by what is kept here.
            with torch.inference_mode(False), torch.no_grad():
                self._cache, prefixes = kept_prefixes(
                    self._model, rows, padding_id(model), often=bool(self._sites)
                )
        self._places = {prefix: place for place, prefix in enumerate(dict.fromkeys(prefixes))}
        self._take(rows, prefixes)

    def subset(self, rows: Sequence[int]) -> TeacherForced:
        """Return some of the rows, in the order given, on the same keys and values of prompts."""
        part = copy.copy(self)
        part._take([self._rows[i] for i in rows], [self._prefixes[i] for i in rows])
        return part

    def _take(self, rows: Sequence[TokenRow], prefixes: Sequence[Prefix]) -> None:
        """Divide rows, whose prefixes are kept, into blocks."""
        self._rows, self._prefixes = rows, prefixes
        self.n_rows = len(rows)
        # How many tokens of each row are scored, and of all.
        self.scored = [sum(row.kept[1:]) for row in rows]
        self.n_scored = sum(self.scored)
        device, pad = input_device(self._model), padding_id(self._bridge)
        most = MOST_LOGITS if device.type == "cpu" else MOST_LOGITS_BESIDE_A_CPU
        # Padding before rows, such that all prefixes end at the same column.
        before = [max(map(len, self._places)) - len(prefix) for prefix in prefixes]
        aligned = [
            TokenRow((pad,) * more + row.ids, (False,) * more + row.kept)
            for more, row in zip(before, rows, strict=True)
        ]
        with torch.inference_mode(False):
            self._blocks = [
                self._block(aligned, before, part)
                for index in length_sorted_batches(aligned, max_tokens=self._max_tokens)
                for part in _few_scored(rows, index, most // int(self._bridge.cfg.d_vocab))
            ]
        self.n_passes = len(self._blocks)
        self._lower_output: dict[int, Any] = {}

    def _block(
        self, aligned: Sequence[TokenRow], before: Sequence[int], index: list[int]
    ) -> _Block:
        width = max(map(len, self._places))
        rows = [aligned[i] for i in index]
        tokens = pad_rows(rows, padding_id(self._bridge), side="right")
        scored = torch.roll(tokens.span, -1, dims=1)
        scored[:, -1] = False
        attention = tokens.attention_mask
        steered = torch.zeros_like(tokens.span)
        prompts = [_first_kept(row) for row in rows]
        for place, (i, row) in enumerate(zip(index, rows, strict=True)):
            attention[place, : before[i]] = 0
            steered[place, max(width, prompts[place] - 1) : len(row)] = True
        device = input_device(self._model)
        return _Block(
            index,
            [self._places[self._prefixes[i]] for i in index],
            tokens.input_ids[:, width:].to(device),
            attention.to(device),
            scored[:, width:].to(device),
            steered.to(device),
            torch.tensor(prompts),
        )

    def passes(
        self,
        vector: SteeringVector | None = None,
        strength: float = 0.0,
        unit: Unit = "norm",
        *,
        editing: Editing | None = None,
        beside: Beside | None = None,
    ) -> Iterator[Pass]:
        """Run every batch once, steered or not.

        Edits may be made instead, such as `intervene` with each row's `prompt_length`; those that
        reach before the last prompt token need `share_prefix=False`. `beside` are `last_states` of
        each row, or several of them stacked, whose logits are wanted beside the pass's own.
        """
        model = self._running(vector)

        def closed(block: _Block) -> Pass:
            others = _others(beside, block)
            below = None if editing else self._below(block, vector)
            changed = (
                editing(block.prompts) if editing else self._steered(block, vector, strength, unit)
            )
            with torch.inference_mode(), changed, _selecting(model, block, others) as seen:
                logits = self._forward(block, below, model)
            return _pass(block, logits, seen, others)

        # No name here holds the logits, which would otherwise outlive the caller's.
        yield from map(closed, self._blocks)

    def last_states(self) -> list[Float[Tensor, "token width"]]:
        """Return each row's unsteered states at its scored tokens, as the unembedding takes them.

        A token's state is d_model numbers where its log-probabilities are as many as the
        vocabulary. Where the unembedding is no module of its own they are the logits.
        """
        rows: dict[int, Tensor] = {}
        for block in self._blocks:
            below = self._below(block, None)
            with torch.inference_mode(), _selecting(self._model, block) as seen:
                logits = self._forward(block, below, self._model)
            states = seen[0] if seen else logits[block.scored]
            counts = block.scored.sum(dim=1).tolist()
            rows |= dict(zip(block.index, states.split(counts), strict=True))
        return [rows[place] for place in range(self.n_rows)]

    def open_passes(
        self,
        vector: SteeringVector | None = None,
        strength: float = 0.0,
        unit: Unit = "norm",
        *,
        beside: Beside | None = None,
    ) -> Iterator[tuple[Pass, Float[Tensor, "row sites*d_model"]]]:
        """Run every batch once, steered, with zeros added at each row's steered positions.

        Gradients flow to the zeros, which come with each pass: d_model for each of the sites, side
        by side. `beside` is as in `passes`.
        """
        if not self._sites:
            raise ValueError("open passes need a site")
        model, width = self._running(vector), int(self._bridge.cfg.d_model)
        targets = self._targets(model)

        def opened(block: _Block) -> tuple[Pass, Tensor]:
            size = (len(block.index), len(targets) * width)
            offset = torch.zeros(size, device=block.ids.device, requires_grad=True)
            where = block.steered[:, -block.ids.shape[1] :, None]
            below = self._below(block, vector)

            def add(own: Tensor, hidden: Tensor) -> Tensor:
                return torch.where(where, hidden + own[:, None].to(hidden.dtype), hidden)

            blocks = offset.split(width, dim=1)
            adding = [(t, partial(add, own)) for t, own in zip(targets, blocks, strict=True)]
            steered = self._steered(block, vector, strength, unit)
            others = _others(beside, block)
            with torch.enable_grad(), hooked(adding), steered:
                with _selecting(model, block, others) as seen:
                    logits = self._forward(block, below, model)
            return _pass(block, logits, seen, others), offset

        try:
            yield from map(opened, self._blocks)
        finally:
            # What gradients are made of lies in pieces that the allocator keeps for itself.
            trim_memory()

    def _steered(
        self, block: _Block, vector: SteeringVector | None, strength: float, unit: Unit
    ) -> AbstractContextManager[Any]:
        if vector is None or strength == 0.0:
            return nullcontext()
        return steer(self._bridge, vector, strength, unit, positions=block.steered)

    def _running(self, vector: SteeringVector | None) -> Any:
        """Return the model to run, such that the sites fire and the vector's too."""
        others = () if vector is None else (piece.site for piece in vector.pieces)
        return self._running_at((*self._sites, *others))

    def _running_at(self, sites: Iterable[Site]) -> Any:
        plain = plain_model(self._bridge)
        models = (resolve_target(self._bridge, site).model for site in dict.fromkeys(sites))
        return next((model for model in models if model is not plain), plain)

    def _targets(self, model: Any) -> list[HookTarget]:
        """Return the sites' places in one of the models."""
        inside = model is not plain_model(self._bridge)
        return [
            resolve_target(self._bridge, site, bridged=inside and site.between_blocks)
            for site in self._sites
        ]

    def _reaches_below(self, vector: SteeringVector) -> bool:
        """Whether a vector may change what the blocks below the sites give."""
        others = [part.site for part in vector.parts if part.site not in self._sites]
        below = any(site.layer < len(self._lower) for site in others)
        return below or vector.site not in self._sites

    def _below(self, block: _Block, vector: SteeringVector | None) -> Any:
        """Return what the last block below the site gives, as the block gives it; None if unused.

        To be called before any hook is on: the block's output may be the very site.
        """
        if not self._lower or (vector is not None and self._reaches_below(vector)):
            return None
        place = block.index[0]
        if place not in self._lower_output:

            def keep(module: Any, inputs: Any, output: Any) -> None:
                self._lower_output[place] = output
                raise _Reached

            handle = self._lower[-1].register_forward_hook(keep)
            try:
                # Not the caller's inference mode, as in the constructor.
                with torch.inference_mode(False), torch.no_grad(), suppress(_Reached):
                    self._forward(block, None, self._model)
            finally:
                handle.remove()
        return self._lower_output[place]

    def _forward(self, block: _Block, below: Any, model: Any) -> Tensor:
        cached = behind(model, self._cache, block.prefixes)
        with nullcontext() if below is None else standing_in(_given(self._lower, below)):
            return run_rows(model, block.ids, block.attention, **cached).logits


def _lower_blocks(model: TransformerBridge, targets: Sequence[HookTarget]) -> list[Any]:
    """Return the blocks whose output no steering at the targets can change."""
    plain = plain_model(model)
    if not targets or targets[0].model is not plain:
        return []
    count = min(t.site.layer + (t.site.hook == "hook_resid_post") for t in targets)
    return [plain.get_submodule(block_name(model, layer)) for layer in range(count)]


def _given(blocks: Sequence[Any], output: Any) -> dict[Any, Callable[..., Any]]:
    """Return forwards with which the last block gives `output` and the others pass theirs on."""

    def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if isinstance(output, tuple) else hidden_states

    return {**dict.fromkeys(blocks, pass_on), blocks[-1]: lambda *args, **kwargs: output}


@contextmanager
def _selecting(model: Any, block: _Block, beside: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Let the unembedding take the scored positions alone, with other states behind them.

    What it took is yielded; nothing where there is no module that takes them.
    """
    seen: list[Tensor] = []
    scored = block.scored

    def select(module: Any, args: tuple[Any, ...]) -> Any:
        if not args or args[0].shape[:-1] != scored.shape:
            return None
        seen.append(args[0][scored.to(args[0].device)])
        others = [] if beside is None else beside.to(seen[0]).reshape(-1, *beside.shape[-2:])
        return (torch.stack([*seen, *others]), *args[1:])

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


def _pass(block: _Block, logits: Tensor, seen: list[Tensor], beside: Tensor | None = None) -> Pass:
    scored = block.scored
    said = logits[0] if seen else logits[scored]
    other = logits[1:].reshape(*beside.shape[:-1], -1) if seen and beside is not None else beside
    after = torch.roll(block.ids, -1, dims=1)[scored]
    return Pass(block.index, said, after, torch.nonzero(scored)[:, 0], other)


def _others(beside: Beside | None, block: _Block) -> Tensor | None:
    return None if beside is None else torch.cat([beside[i] for i in block.index], dim=-2)


def _few_scored(rows: Sequence[TokenRow], index: Sequence[int], most: int) -> Iterator[list[int]]:
    """Divide a batch so that no part has more scored tokens than `most`, or is one row."""
    part: list[int] = []
    tokens = 0
    for place in index:
        scored = sum(rows[place].kept)
        if part and tokens + scored > most:
            yield part
            part, tokens = [], 0
        part.append(place)
        tokens += scored
    yield part


def _check_rows(rows: Sequence[TokenRow]) -> None:
    if not rows:
        raise DataError("there are no texts to run; give at least one.")
    for number, row in enumerate(rows, start=1):
        if not any(row.kept[1:]):
            raise DataError(
                f"text {number} has no token that follows another one, so nothing of it can be "
                "scored; give it a prompt or leave it out."
            )


def _first_kept(row: TokenRow) -> int:
    return row.kept.index(True)
