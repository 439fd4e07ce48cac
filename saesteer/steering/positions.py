"""Which positions of a forward pass a vector is written to, with a KV cache and without.

The mask is worked out in a forward pre-hook on the whole model, which alone sees the attention
mask, the cache and the width of the pass; the hook at the site sees none of these. The prompt's
width is taken from `generate` where that runs. Padding is read from the attention mask, never from
token ids, because several tokenizers pad with BOS or EOS.

Why a token was not steered, and where that is decided:

- it stands before the chosen positions (a vector's own `positions`, or those given): `_chosen`;
- it is padding: `_real_columns`, from the attention mask;
- it is special: `_not_special`. `generate.py` leaves out special tokens before the prompt's last
  one, `intervene` all of them, `steer` none unless given a `special_mask`;
- its row is not to be steered, or its strength is 0: `Add` in `edits.py`; where all strengths are
  0 nothing is written at all: `apply.py`;
- the edit has a first or a last generated token and it lies outside: `Edit.covers` in `edits.py`;
- it is the last one that was generated, which no pass reads any more.

A likelihood is measured with a mask made beforehand: `steered` in `teacher_forced.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from saesteer.models.compat import cached_length, find_cache, named_arguments
from saesteer.utils.errors import HookError, SteeringError

DEFAULT_POSITIONS = "from_last_prompt_token"
SAVED_POSITIONS = (DEFAULT_POSITIONS, "all", "generated")


def check_saved_positions(name: object) -> None:
    """Refuse a writing position that does not exist."""
    if name not in SAVED_POSITIONS:
        raise SteeringError(
            f"positions {name!r} are unknown; use one of {', '.join(SAVED_POSITIONS)}, or a "
            "boolean mask [batch, pos] when steering."
        )


class SteeringMask:
    """The positions to write to, kept up to date while it is `watching` a model.

    What counts as the prompt: what `generate` is given; otherwise the first forward pass, and every
    later one that starts with an empty KV cache. What a pass adds to a cache is generated. Without
    a cache, a pass outside `generate` that repeats the last one with one more token goes on
    generating; two separate texts of which one is the other plus one token look the same, so give
    `prompt_length`, a mask, or call `new_prompt` between them. A prompt fed in chunks by hand needs
    `prompt_length`.

    Args:
        positions: "from_last_prompt_token" (the last prompt token and all generated ones), "all"
            (every real token), "generated" (only generated tokens), or a mask over the columns of
            a whole sequence, True where the vector is added. Padding is never written to.
        prompt_length: The prompt's width in columns, left padding included, where known; or one
            for each row.
        special_mask: True at BOS and other special tokens, which are then left out; columns after
            its last one are not special.
        special_ids: The ids of tokens that are left out wherever they stand.
    """

    def __init__(
        self,
        positions: str | Bool[Tensor, "batch pos"] = DEFAULT_POSITIONS,
        *,
        prompt_length: int | Int[Tensor, " batch"] | None = None,
        special_mask: Bool[Tensor, "batch pos"] | None = None,
        special_ids: Int[Tensor, " id"] | None = None,
    ) -> None:
        self._explicit: Tensor | None = None
        if isinstance(positions, Tensor):
            self._explicit = _check_mask(positions, "positions")
        else:
            check_saved_positions(positions)
        number = 1 if prompt_length is None or isinstance(prompt_length, Tensor) else prompt_length
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise SteeringError(
                f"prompt_length {prompt_length!r} is not a number of columns; give 1 or more."
            )
        self._positions = positions
        self._given_length = prompt_length
        self._special = None if special_mask is None else _check_mask(special_mask, "special_mask")
        self._special_ids = special_ids
        self._batch: int | None = None
        self._mask: Tensor | None = None
        self._moved: dict[torch.device, Tensor] = {}
        # How many tokens went into caches that do not say so themselves.
        self._held: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._generating: int | None = None
        self._due = self._reached = False
        self.past = self._end = 0
        self.new_prompt()

    def new_prompt(self) -> None:
        """Forget the prompt: the next forward pass is a new one, whatever it looks like."""
        # The prompt's last column, of all rows or [batch, 1].
        self._last: int | Tensor | None = None
        self._seen: Tensor | None = None

    def begin(self, prompt_length: int, num_beams: int) -> None:
        """Note that `generate` begins with a prompt of so many columns."""
        self.new_prompt()
        self._generating = prompt_length

    def end(self, new_tokens: int) -> None:
        """Note that `generate` has ended."""
        self._generating = None
        # The last token generated is not read, and of a mask a short text may not come to the end.
        short = self._explicit is not None and bool(self._explicit[:, self._end :].any())
        self._due = self._due or (new_tokens > 1 and not short)

    def check_reached(self, what: str) -> None:
        """Raise a HookError when all is over and no token was chosen where one had to be."""
        if self._due and not self._reached:
            chosen = "a mask" if self._explicit is not None else repr(self._positions)
            raise HookError(
                f"{what} reached no token: positions {chosen} chose none of the tokens that ran; "
                "'generated' needs tokens behind the prompt (call generate, or give "
                "prompt_length), a mask a True at a real token."
            )

    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Work out the mask of the forward pass about to run (a forward pre-hook)."""
        inputs = named_arguments(model, args, kwargs)
        tokens = inputs.get("input_ids")
        tokens = inputs.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            raise HookError(
                "the model was called without input_ids or inputs_embeds, so steering cannot tell "
                "its positions; pass one of them."
            )
        batch, width = tokens.shape[:2]
        cache = find_cache(inputs)
        past = self._past(cache, inputs, width)
        real = _real_columns(inputs.get("attention_mask"), past, width)
        self._batch, self.past, self._end = batch, past, past + width
        self._moved.clear()
        if self._is_new(tokens, cache, past):
            self._last = self._last_prompt_column(past, width, real)
        self._seen = tokens if cache is None else None
        self._mask = _all_of(
            self._chosen(batch, past, width, tokens.device), self._not_special(tokens, past), real
        )

    def conclude(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Note that a pass is over, and what is in a cache that does not say (a forward hook)."""
        self._due = self._due or self._generating is None
        for cache in (find_cache(named_arguments(model, args, kwargs)), find_cache(output)):
            if cache is not None and cached_length(cache) is None:
                self._held[cache] = self._end

    def mask(self, batch: int, device: torch.device) -> Bool[Tensor, "batch pos 1"] | None:
        """Return the running pass's mask on a device; None when every position is written to."""
        if self._batch != batch:
            raise HookError(
                "the site ran outside a forward pass of the whole model, so steering cannot tell "
                "its positions; call the model, not one of its blocks."
            )
        # Asked until it is so: on a GPU the answer costs a wait.
        self._reached = self._reached or self._mask is None or bool(self._mask.any())
        if self._mask is None:
            return None
        if device not in self._moved:
            self._moved[device] = self._mask.to(device).unsqueeze(-1)
        return self._moved[device]

    def steps(self, device: torch.device) -> Int[Tensor, "#batch pos 1"]:
        """Return which generated token each column of the running pass decides.

        Step 0 is the last prompt token, which decides token 0; below 0 are those before it.
        """
        last = self._last
        assert last is not None
        columns = torch.arange(self.past, self._end, device=device)
        return (columns[None] - (last.to(device) if isinstance(last, Tensor) else last))[..., None]

    def _past(self, cache: Any, inputs: Mapping[str, Any], width: int) -> int:
        """Return how many columns of the text went before the pass."""
        places = _places(inputs)
        reach = max(places, _attended(inputs))
        length = 0 if cache is None else cached_length(cache)
        narrow = cache is None and width < (self._generating or 0)
        # A cache may be made longer than what is in it, and the attention mask with it.
        if narrow or (length == 0 and (reach if cache is None else places) > width):
            raise HookError(
                f"a pass of {width} tokens goes on with a text and hands over no cache that says "
                "how much went before, so steering cannot tell its positions; generate with "
                "use_cache=False, or run the whole text in one pass."
            )
        if length is not None:
            return length
        if reach > width:
            return reach - width
        if cache in self._held:
            return self._held[cache]
        raise HookError(
            f"a cache of type {type(cache).__name__} does not say how long it is; pass a "
            "[batch, pos] attention_mask with it, or start with an empty one, or run without."
        )

    def _is_new(self, tokens: Tensor, cache: Any, past: int) -> bool:
        if self._last is None:
            return True
        if past > 0:
            return False
        seen = self._seen
        grown = (
            cache is None
            and seen is not None
            and tokens.shape[:2] == (seen.shape[0], seen.shape[1] + 1)
            and torch.equal(tokens[:, :-1].to(seen.device), seen)
        )
        return not grown

    def _last_prompt_column(self, past: int, width: int, real: Tensor | None) -> int | Tensor:
        if isinstance(self._given_length, Tensor):
            return self._given_length[:, None] - 1
        length = self._given_length or self._generating or past + width
        inside = length - past
        if real is None or not 0 < inside <= width:
            return length - 1
        # The last real column of each row: the same for all rows unless they are right-padded.
        columns = torch.arange(past, past + inside, device=real.device)
        return torch.where(real[:, :inside], columns, -1).amax(dim=1, keepdim=True)

    def _chosen(self, batch: int, past: int, width: int, device: torch.device) -> Tensor | None:
        if self._explicit is not None:
            mask = self._explicit
            whole = past > 0 or mask.shape[1] == width
            if mask.shape[0] != batch or past + width > mask.shape[1] or not whole:
                raise _unfit("positions mask", mask, batch, past + width)
            return mask[:, past : past + width]
        if self._positions == "all":
            return None
        assert self._last is not None
        start = self._last + 1 if self._positions == "generated" else self._last
        if isinstance(start, int) and past >= start:
            return None
        columns = torch.arange(past, past + width, device=device)
        return (columns >= (start.to(device) if isinstance(start, Tensor) else start)).expand(
            batch, width
        )

    def _not_special(self, tokens: Tensor, past: int) -> Tensor | None:
        batch, width = tokens.shape[:2]
        if self._special_ids is not None and tokens.ndim == 2:
            return ~torch.isin(tokens, self._special_ids.to(tokens.device))
        special = self._special
        if special is None or past >= special.shape[1]:
            return None
        if special.shape[0] != batch:
            raise _unfit("special_mask", special, batch, past + width)
        part = special[:, past : past + width]
        return ~torch.nn.functional.pad(part, (0, width - part.shape[1]))


def _all_of(*parts: Tensor | None) -> Tensor | None:
    found: Tensor | None = None
    for part in parts:
        if part is not None:
            found = part if found is None else found & part.to(found.device)
    return found


def _check_mask(mask: Any, name: str) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
        raise SteeringError(f"{name} is not a boolean tensor [batch, pos]; give one.")
    return mask


def _unfit(name: str, mask: Tensor, batch: int, width: int) -> SteeringError:
    return SteeringError(
        f"the {name} has shape {tuple(mask.shape)} and the forward pass {(batch, width)} in rows "
        "and columns; give one that covers exactly the sequence that is run."
    )


def _attended(inputs: Mapping[str, Any]) -> int:
    """Return how many columns the attention mask covers; 0 without one."""
    attention = inputs.get("attention_mask")
    return attention.shape[-1] if isinstance(attention, Tensor) else 0


def _places(inputs: Mapping[str, Any]) -> int:
    """Return how many columns of the text the pass's positions speak of; 0 without any."""
    places = [inputs.get(name) for name in ("cache_position", "position_ids")]
    return max((int(p.max()) + 1 for p in places if isinstance(p, Tensor) and p.numel()), default=0)


def _real_columns(attention: Any, past: int, width: int) -> Bool[Tensor, "batch pos"] | None:
    """Return which columns of the pass hold real tokens; None if all do."""
    if isinstance(attention, Mapping):
        # Compiled caches bring one mask per kind of attention layer; their diagonals agree.
        attention = next((m for m in attention.values() if isinstance(m, Tensor)), None)
    if not isinstance(attention, Tensor):
        return None
    if attention.ndim == 4:
        # A token attends to itself unless its column is padding; sliding windows keep that.
        own = attention[:, 0].diagonal(past, dim1=-2, dim2=-1)
        real = own if own.dtype == torch.bool else own >= 0
    else:
        end = past + width
        part = attention[:, past:end] if attention.shape[1] >= end else attention[:, -width:]
        real = part != 0
    return None if bool(real.all()) else real
