"""Steering: vectors added to the residual stream while a `with` block lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saesteer.models.loading import made_on_other_weights, model_info
from saesteer.models.sites import Site, all_targets
from saesteer.steering.positions import SteeringMask
from saesteer.steering.strength import Unit, check_strengths, to_raw
from saesteer.utils.errors import HookError, MismatchError, SteeringError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering.vector import SteeringVector

_RESIDUAL = ("hook_resid_pre", "hook_resid_post")


@dataclass(frozen=True)
class Steering:
    """What `steer` yields: a handle on the steering under way."""

    masks: tuple[SteeringMask, ...]

    def new_prompt(self) -> None:
        """Say that the next forward pass is a new prompt, though it may look like the last one."""
        for mask in self.masks:
            mask.new_prompt()


@contextmanager
def steer(
    model: TransformerBridge,
    vectors: SteeringVector | Sequence[SteeringVector],
    strength: float | Sequence[float],
    unit: Unit = "norm",
    *,
    positions: str | Bool[Tensor, "batch pos"] | None = None,
    rows: Sequence[int] | None = None,
    prompt_length: int | None = None,
    special_mask: Bool[Tensor, "batch pos"] | None = None,
    strict: bool = True,
) -> Iterator[Steering]:
    """Add vectors at their sites in every forward pass inside the block.

    It works on the plain Hugging Face model (`plain_model(model)`: a forward pass or `generate`)
    and on the bridge itself. Blocks can be nested: their vectors add up. Rows at strength 0 are
    bit-identical to the unsteered model. Gradients flow to `vector.direction`. Hooks come off
    however the block is left.

    Args:
        model: A model from `load_model`.
        vectors: One vector, or several at once, at one site or at several.
        strength: One strength for all rows, or one per row of the batch (per row of `rows` if that
            is given). With n strengths and a batch of k * n rows, each strength takes k
            consecutive rows, in the order in which Hugging Face repeats rows for beams and for
            num_return_sequences. Every vector gets the same strength; nest blocks for different
            ones.
        unit: "norm", "raw" or "max_act"; see `to_raw`.
        positions: Where to write: see `SteeringMask`; each vector's own `positions` if None.
        rows: The batch rows to steer, from 0; all if None.
        prompt_length: The prompt's width in columns, left padding included; worked out from the
            forward passes if None.
        special_mask: True at special tokens, which are then not written to.
        strict: Refuse a vector whose model fingerprint is not this model's.

    Yields:
        A handle whose `new_prompt()` starts afresh.

    Raises:
        SteeringError: A strength, unit, row or mask cannot be used; before anything runs, or in
            the forward pass that shows it.
        MismatchError: A vector is not of this model's width, or (strict) not of this model.
        SiteError: The model has no such site.
        HookError: The block ended and no forward pass reached the site, or none held a token to
            write to; or it cannot be told which columns of the whole text a pass holds.
    """
    chosen = tuple(vectors) if isinstance(vectors, Sequence) else (vectors,)
    if not chosen:
        raise SteeringError("there are no vectors to steer with; give at least one.")
    strengths = check_strengths(strength)
    _check_rows(rows, len(strengths))
    for vector in chosen:
        _check_belongs(model, vector, strict)
    groups = _grouped(chosen, strengths, unit, positions)
    with ExitStack() as stack:
        # One mask for each model and kind of positions, however many sites read it.
        masks: dict[tuple[int, str], SteeringMask] = {}
        writers: list[_Writer] = []
        for (site, where), (directions, lengths) in groups.items():
            written = where if positions is None or isinstance(positions, str) else positions
            writer = _Writer(site, directions, lengths, rows)
            writers.append(writer)
            for target in all_targets(model, site):
                key = (id(target.model), where)
                if key not in masks:
                    masks[key] = SteeringMask(
                        written, prompt_length=prompt_length, special_mask=special_mask
                    )
                    stack.enter_context(masks[key].watching(target.model))
                stack.callback(target.hook(writer.writing(masks[key])).remove)
        yield Steering(tuple(masks.values()))
    for writer in writers:
        if not writer.fired:
            raise HookError(
                f"steering at {writer.site} never took place: no forward pass of this model "
                "reached it; run or generate with this model inside the with block."
            )
        for mask in writer.masks if writer.active else ():
            mask.check_reached(f"steering at {writer.site}")


class _Writer:
    """Adds the summed vectors of one site; `fired` tells whether it ever ran."""

    def __init__(
        self,
        site: Site,
        directions: Sequence[Tensor],
        lengths: Sequence[Sequence[float]],
        rows: Sequence[int] | None,
    ) -> None:
        self.site = site
        self.fired = False
        self._directions = directions
        self._lengths = lengths
        self._rows = rows
        self._active = [any(row) for row in zip(*lengths, strict=True)]
        self.active = any(self._active)
        self.masks: list[SteeringMask] = []
        self._learnt = any(d.requires_grad for d in directions)
        self._prepared: dict[tuple[int, torch.dtype, torch.device], _Addition] = {}

    def writing(self, mask: SteeringMask):
        """Return the function to hook at the site, reading its positions from `mask`."""
        self.masks.append(mask)

        def write(hidden: Tensor) -> Tensor | None:
            self.fired = True
            if not self.active:
                self._check_shape(hidden)
                self._row_of(hidden.shape[0])
                return None
            added, rows = self._addition(hidden)
            where = mask.mask(hidden.shape[0], hidden.device)
            if where is None:
                where = rows
            elif rows is not None:
                where = where & rows
            if where is None:
                return hidden + added
            # Not a sum with zeros: an untouched position keeps its very bits.
            return torch.where(where, hidden + added, hidden)

        return write

    def _addition(self, hidden: Tensor) -> _Addition:
        key = (hidden.shape[0], hidden.dtype, hidden.device)
        ready = self._prepared.get(key)
        if ready is not None:
            return ready
        self._check_shape(hidden)
        made = self._make(*key)
        # A cached cast of a direction that is learnt would hold a graph that is freed.
        if not self._learnt:
            self._prepared[key] = made
        return made

    def _make(self, batch: int, dtype: torch.dtype, device: torch.device) -> _Addition:
        index = self._row_of(batch)
        total: Tensor | None = None
        for direction, lengths in zip(self._directions, self._lengths, strict=True):
            scale = torch.tensor(lengths, dtype=torch.float32, device=device)
            part = scale[:, None] * direction.to(device, torch.float32)
            total = part if total is None else total + part
        assert total is not None
        active = torch.tensor([*self._active, False], device=device)
        if index is None:
            return total[:, None].to(dtype), None
        added = torch.cat([total, torch.zeros_like(total[:1])])[index].to(dtype)
        chosen = active[index]
        return added[:, None], None if bool(chosen.all()) else chosen[:, None, None]

    def _row_of(self, batch: int) -> Tensor | None:
        """Return for each row of the batch the index of its strength, -1 for none."""
        count = len(self._active)
        if self._rows is not None:
            if max(self._rows) >= batch:
                raise SteeringError(
                    f"rows names row {max(self._rows)} and the batch has {batch}; rows count from "
                    "0."
                )
            index = torch.full((batch,), -1)
            index[list(self._rows)] = torch.arange(count) if count > 1 else 0
            return index
        if count == 1:
            return None
        if batch % count:
            raise SteeringError(
                f"{count} strengths do not fit a batch of {batch} rows; give one strength, or one "
                "per row."
            )
        return torch.arange(count).repeat_interleave(batch // count)

    def _check_shape(self, hidden: Tensor) -> None:
        for direction in self._directions:
            if hidden.ndim != 3 or hidden.shape[-1] != direction.shape[0]:
                raise MismatchError(
                    f"the vector is {direction.shape[0]} wide and the hidden state at {self.site} "
                    f"has shape {tuple(hidden.shape)}; use a vector that was made at this site of "
                    "this model."
                )


_Addition = tuple[Float[Tensor, "batch 1 d_model"], Bool[Tensor, "batch 1 1"] | None]


def _grouped(
    vectors: Sequence[SteeringVector],
    strengths: Sequence[float],
    unit: Unit,
    positions: object,
) -> dict[tuple[Site, str], tuple[list[Tensor], list[list[float]]]]:
    groups: dict[tuple[Site, str], tuple[list[Tensor], list[list[float]]]] = {}
    for vector in vectors:
        where = positions if isinstance(positions, str) else vector.positions
        directions, lengths = groups.setdefault((vector.site, where), ([], []))
        directions.append(vector.direction)
        lengths.append([to_raw(s, unit, vector) for s in strengths])
    return groups


def _check_rows(rows: Sequence[int] | None, count: int) -> None:
    if rows is None:
        return
    whole = all(isinstance(r, int) and not isinstance(r, bool) and r >= 0 for r in rows)
    if not rows or not whole or len(set(rows)) != len(rows):
        raise SteeringError(
            f"rows {list(rows)!r} are not different row numbers from 0; give at least one."
        )
    if count not in (1, len(rows)):
        raise SteeringError(
            f"{count} strengths do not fit {len(rows)} rows; give one strength, or one per row."
        )


def _check_belongs(model: TransformerBridge, vector: SteeringVector, strict: bool) -> None:
    info = model_info(model)
    width = info.plain.config.get_text_config().hidden_size
    if vector.site.hook in _RESIDUAL and vector.d_model != width:
        raise MismatchError(
            f"vector {vector.name!r} of model {vector.model} is {vector.d_model} wide and this "
            f"model's residual stream {width}; load the model that the vector was made on."
        )
    made_on = vector.model_fingerprint
    if strict and made_on and made_on_other_weights(model, vector.model, made_on):
        raise MismatchError(
            f"vector {vector.name!r} was made on other weights (model {vector.model}, fingerprint "
            f"{made_on[:12]}) than this model's ({info.source.name}, {info.fingerprint[:12]}); "
            "load that model, or pass strict=False to steer all the same."
        )
