"""Steering: edits made in every forward pass while a `with` block lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saesteer.models.compat import watching
from saesteer.models.loading import check_weights, plain_model
from saesteer.models.resolve import ModelSource, check_shape
from saesteer.models.sites import Site, all_targets
from saesteer.models.tokens import special_ids
from saesteer.steering.clean import CleanReadings
from saesteer.steering.edits import Add, Edit
from saesteer.steering.positions import SteeringMask
from saesteer.steering.strength import Unit, check_strengths, per_site
from saesteer.utils.errors import HookError, MismatchError, SteeringError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering.vector import SteeringVector

Policy = Literal["once", "compound"]


@dataclass(frozen=True)
class Steering:
    """What `steer` yields: a handle on the steering under way."""

    masks: tuple[SteeringMask, ...]

    def new_prompt(self) -> None:
        """Say that the next forward pass is a new prompt, though it may look like the last one."""
        for mask in self.masks:
            mask.new_prompt()


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
) -> AbstractContextManager[Steering]:
    """Add vectors at their sites in every forward pass inside the `with` block.

    It works on the plain Hugging Face model (`plain_model(model)`: a forward pass or `generate`)
    and on the bridge itself. Blocks can be nested: their vectors add up. Rows at strength 0 are
    bit-identical to the unsteered model. Gradients flow to `vector.direction`. Hooks come off
    however the block is left. The block gives a handle whose `new_prompt()` starts afresh.

    Args:
        vectors: One vector, or several at once, at one site or at several; each with its parts.
        strength: For every vector the same, as in `Add`; nest blocks for different ones.
        unit: See `to_raw`.
        positions: Where to write: see `SteeringMask`; each vector's own `positions` if None.
        rows: The batch rows to steer, from 0; all if None.
        prompt_length: The prompt's width in columns, left padding included; worked out from the
            forward passes if None.
        special_mask: True at special tokens, which are then not written to.
        strict: Refuse a vector whose model fingerprint is not this model's.

    Raises:
        SteeringError: A strength, unit, row or mask cannot be used; before anything runs, or in
            the forward pass that shows it.
        MismatchError: A vector is not of this model's width, or (strict) not of this model.
        SiteError: The model has no such site.
        HookError: The block ended and no forward pass reached the site, or none held a token to
            write to; or it cannot be told which columns of the whole text a pass holds.

    Example:
        >>> with ss.steer(model, vector, strength=0.2):
        ...     steered = model(inputs["input_ids"])
    """
    chosen = tuple(vectors) if isinstance(vectors, Sequence) else (vectors,)
    if not chosen:
        raise SteeringError("there are no vectors to steer with; give at least one.")
    edits = [edit for vector in chosen for edit in _adds(vector, strength, unit, rows)]
    masking = {"prompt_length": prompt_length, "special_mask": special_mask}
    return _edited(model, edits, "compound", positions, masking, strict)


def _adds(
    vector: SteeringVector,
    strength: float | Sequence[float],
    unit: Unit,
    rows: Sequence[int] | None,
) -> list[Add]:
    """Return what adds a vector, one edit for each of its sites."""
    each = [per_site(vector, one, unit) for one in check_strengths(strength)]
    return [
        Add(of_site[0][0], [length for _, length in of_site], "raw", rows)
        for of_site in zip(*each, strict=True)
    ]


def intervene(
    model: TransformerBridge,
    edits: Edit | Sequence[Edit],
    *,
    policy: Policy = "once",
    positions: str | None = None,
    prompt_length: int | Int[Tensor, " batch"] | None = None,
) -> AbstractContextManager[Steering]:
    """Make edits (`Add`, `Flip`, `Ablate`, `Set`) in every forward pass inside the block.

    As `steer`, except that BOS and other special tokens are never written to.

    With several layers the policy says which alpha counts. "once": alpha' is worked out from the
    reading that the model would have had without any edit, so that wherever it is written each
    layer reads as one single edit would leave it; flips neither undo nor compound each other. This
    takes a second, clean pass beside each pass. "compound": alpha' is worked out from the running
    reading, which earlier layers have changed already; n flips of scale s may come to s**n or
    cancel. At one layer the two are the same.

    Args:
        edits: One or several, at one site or at several; at a site they follow one another in the
            order given.
        policy: Which alpha counts, as said above.
        positions: Where to write: "from_last_prompt_token", "all" or "generated"; each vector's
            own positions if None.
        prompt_length: The prompt's width in columns, left padding included, or one for each row;
            worked out from the forward passes if None.

    Raises:
        SteeringError: There is no edit, or no such policy or position.
        MismatchError: A vector is of another model or width.
        SiteError: The model has no such site.
        HookError: As in `steer`.

    Example:
        >>> with ss.intervene(model, ss.Ablate(vector)):
        ...     without = model(inputs["input_ids"])
    """
    chosen = (edits,) if isinstance(edits, Edit) else tuple(edits)
    if not chosen:
        raise SteeringError("there are no interventions; give at least one.")
    if policy not in ("once", "compound"):
        raise SteeringError(f"policy {policy!r} is unknown; use 'once' or 'compound'.")
    special = torch.tensor(sorted(special_ids(model.tokenizer)), dtype=torch.long)
    masking = {"prompt_length": prompt_length, "special_ids": special}
    return _edited(model, chosen, policy, positions, masking, strict=True)


@contextmanager
def _edited(
    model: TransformerBridge,
    edits: Sequence[Edit],
    policy: Policy,
    positions: str | Tensor | None,
    masking: Mapping[str, Any],
    strict: bool,
) -> Iterator[Steering]:
    writers: dict[Site, _Writer] = {}
    # One mask for each kind of positions, however many sites read it.
    kinds: dict[str, str | Tensor] = {}
    for edit in edits:
        check_belongs(model, edit.vector, strict)
        where = edit.vector.positions if positions is None else positions
        kind = where if isinstance(where, str) else "a mask"
        kinds[kind] = where
        site = edit.vector.site
        writers.setdefault(site, _Writer(site)).edits.append((edit, kind))
    directions = None
    if policy == "once" and len(writers) > 1:
        directions = {site: writer.directions for site, writer in writers.items()}
    # The plain model and the bridge's own may both be called: what is known of each.
    passes: dict[int, _Pass] = {}
    with ExitStack() as stack:
        for site, writer in writers.items():
            for target in all_targets(model, site):
                state = passes.get(id(target.model))
                if state is None:
                    masks = {kind: SteeringMask(where, **masking) for kind, where in kinds.items()}
                    first = next(iter(masks.values()))
                    clean = None if directions is None else CleanReadings(directions, first)
                    for one in (*masks.values(), *([] if clean is None else [clean])):
                        stack.enter_context(watching(target.model, one))
                    state = passes[id(target.model)] = _Pass(masks, clean)
                stack.callback(target.hook(partial(writer.write, state)).remove)
        yield Steering(tuple(m for state in passes.values() for m in state.masks.values()))
    for writer in writers.values():
        writer.check_reached(passes.values())


class _Pass(NamedTuple):
    """What is known of the pass that is running."""

    masks: dict[str, SteeringMask]
    clean: CleanReadings | None


class _Writer:
    """Makes one site's edits, each with its kind of positions; notes whether it ever ran."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.edits: list[tuple[Edit, str]] = []
        self._fired = False

    @property
    def directions(self) -> dict[bytes, Tensor]:
        """Its edits' directions, each once, by their numbers."""
        return {_numbers(edit): edit.direction for edit, _ in self.edits}

    def write(self, state: _Pass, hidden: Tensor) -> Tensor | None:
        """Return the hidden state at the site with the edits made; None for as it is."""
        self._check_shape(hidden)
        clean = state.clean
        if clean is not None and clean.running:
            clean.note(self.site, hidden)
            return None
        self._fired = True
        # Along one direction, what an earlier edit of this site meant to leave.
        readings = {} if clean is None else dict(clean.readings(self.site))
        changed: Tensor | None = None
        for edit, kind in self.edits:
            if isinstance(edit, Add) and edit.idle and not readings:
                edit.row_strengths(len(hidden))
                continue
            where = _where(state.masks[kind], edit, hidden)
            reading = readings.get(_numbers(edit)) if readings else None
            changed = edit(hidden if changed is None else changed, where, reading)
            if reading is not None:
                meant = edit.target(reading)
                kept = meant if where is None else torch.where(where[..., 0], meant, reading)
                readings[_numbers(edit)] = kept
        return changed

    def check_reached(self, passes: Iterable[_Pass]) -> None:
        """Raise a HookError when all is over and nothing was written."""
        what = f"steering at {self.site}"
        if not self._fired:
            ways = (
                "." if self.site.between_blocks else ", through model(tokens) or saesteer.generate."
            )
            raise HookError(
                f"{what} never took place: no forward pass of this model reached it; run or "
                f"generate with this model inside the with block{ways}"
            )
        for edit, kind in self.edits:
            for state in () if edit.idle else passes:
                state.masks[kind].check_reached(what)

    def _check_shape(self, hidden: Tensor) -> None:
        for edit, _ in self.edits:
            width = edit.vector.d_model
            if hidden.ndim != 3 or hidden.shape[-1] != width:
                raise MismatchError(
                    f"the vector is {width} wide and the hidden state at {self.site} has shape "
                    f"{tuple(hidden.shape)}; use a vector that was made at this site of this model."
                )


def _where(mask: SteeringMask, edit: Edit, hidden: Tensor) -> Tensor | None:
    """Return where an edit is made, [#batch, pos, 1]; None for everywhere."""
    found = mask.mask(hidden.shape[0], hidden.device)
    if edit.whole:
        return found
    inside = edit.covers(mask.steps(hidden.device))
    return inside if found is None else found & inside


def _numbers(edit: Edit) -> bytes:
    return edit.direction.numpy().tobytes()


def check_shape_of(vector: SteeringVector, source: ModelSource) -> None:
    """Refuse, before a model is loaded, a vector that has no place in it; see `check_shape`."""
    for piece in vector.pieces:
        check_shape(source, piece.site, piece.d_model, f"vector {piece.name!r}")


def check_belongs(model: TransformerBridge, vector: SteeringVector, strict: bool = True) -> None:
    """Refuse a vector that is not of this model's width, or (strict) not of its weights."""
    width = plain_model(model).config.get_text_config().hidden_size
    for piece in vector.pieces:
        if piece.site.between_blocks and piece.d_model != width:
            raise MismatchError(
                f"vector {piece.name!r} of model {piece.model} is {piece.d_model} wide and this "
                f"model's residual stream {width}; load the model that the vector was made on."
            )
    if strict:
        made = f"vector {vector.name!r} was made"
        otherwise = "pass strict=False to steer all the same"
        check_weights(model, made, vector.model, vector.model_fingerprint, otherwise)
