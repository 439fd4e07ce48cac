"""Running a layer program on the shared model: nothing is copied, everything is put back."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from saesteer.corruption.edits import edited
from saesteer.corruption.program import LinearSpan, NoiseEdit, Program, Step
from saesteer.models.blocks import (
    BlockList,
    Call,
    block_lists,
    check_alike,
    first_of,
    one_line,
    stood_in,
    trial_ids,
    unhooked,
)
from saesteer.utils.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.corruption.fitted import LinearMap, Means

HiddenMap = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def corrupted(
    model: TransformerBridge,
    program: Program,
    *,
    maps: Mapping[LinearSpan, LinearMap] | None = None,
    means: Means | None = None,
) -> Iterator[TransformerBridge]:
    """Run a program on every pass inside: forward, run_with_cache and generate.

    It holds for the bridge and for the plain model beneath it. A layer that runs twice has two
    places in the KV cache; `run_with_cache` returns what it computed last.

    Args:
        model: A model from `load_model`.
        program: What to run.
        maps: The linear maps that the program's spans stand for; see `fit_linear_maps`.
        means: What parts put to their mean are put to; see `measure_means`.

    Raises:
        ConfigError: The program is another model's, a map or mean is missing, or a program is
            running already.
        ModelError: The program cannot run on this architecture.

    Example:
        >>> with corrupted(model, parse_program("skip 3", 30)):  # doctest: +SKIP
        ...     logits = model(tokens)
    """
    if program.n_layers != int(model.cfg.n_layers):
        raise ConfigError(
            f"program '{program}' was read for {program.n_layers} layers and the model has "
            f"{model.cfg.n_layers}; read it again for this model."
        )
    if missing := [span for span in program.spans if span not in (maps or {})]:
        raise ConfigError(
            f"program '{program}' has no map for '{missing[0]}'; fit one with fit_linear_maps."
        )
    check_programs(model, [program])
    with ExitStack() as stack:
        for late, place in enumerate(block_lists(model)):
            # The plain model runs also where the bridge cannot.
            stack.enter_context(_running(place, program.steps, maps or {}, late=bool(late)))
        stack.enter_context(edited(model, program.edits, means))
        yield model


# How many tokens of each row a cache has been through, where a program needs to know.
_PASSED = "saesteer_passed"
_TWICE = Program((0, 0), 1)
# What was tried on a model, and runs.
_RUNNING: WeakKeyDictionary[nn.Module, set[Program]] = WeakKeyDictionary()


def check_programs(model: TransformerBridge, programs: Sequence[Program]) -> None:
    """Check that programs can run on a model, by running each on a few made-up tokens.

    It is checked as well that the model's blocks, run one by one, give its logits, and where a
    layer runs twice that this gives the same with a KV cache and without.

    The programs' maps and means need not be there yet.
    """
    place = block_lists(model)[0]
    root: Any = place.root
    known = _RUNNING.setdefault(root, set())
    for program in programs:
        if program in known:
            continue
        if _TWICE not in known and any(count > 1 for count in Counter(program.steps).values()):
            with unhooked(root), torch.no_grad():
                _check_cache(place)
            known.add(_TWICE)
        maps: Any = dict.fromkeys(program.spans, lambda hidden, _positions: hidden)
        edits = [e if isinstance(e, NoiseEdit) else replace(e, how="zero") for e in program.edits]
        try:
            with (
                unhooked(root),
                edited(model, edits),
                _running(place, program.steps, maps),
                torch.no_grad(),
            ):
                root(input_ids=trial_ids(root), use_cache=False)
        except (ConfigError, ModelError):
            raise
        except Exception as error:
            raise ModelError(
                f"program '{program}' cannot run on {model.cfg.model_name}: a layer misses what "
                f"another one leaves for it ({one_line(error)}); choose other layers."
            ) from error
        known.add(program)


def _check_cache(place: BlockList) -> None:
    """Check that what a cache remembers of layers that run twice is what they saw."""
    root: Any = place.root
    ids = trial_ids(root)
    steps = tuple(range(len(place.blocks))) * 2
    with _running(place, steps, {}):
        wanted = root(input_ids=ids, use_cache=False).logits[:, -1]
        try:
            said: Any = root(input_ids=ids[:, :-1], use_cache=True)
            cache = next((v for v in said.values() if _is_cache(v)), None)
            if cache is None:
                raise ModelError("it hands on no KV cache")
            name = "cache" if "cache" in said else "past_key_values"
            got = root(input_ids=ids[:, -1:], use_cache=True, **{name: cache}).logits[:, -1]
            check_alike(got, wanted, root.dtype)
        except Exception as error:
            raise ModelError(
                f"{type(root).__name__} cannot run a layer twice with a KV cache "
                f"({one_line(error)}); choose programs in which each layer runs once."
            ) from error


@contextmanager
def _running(
    place: BlockList,
    steps: Sequence[Step],
    maps: Mapping[LinearSpan, HiddenMap],
    *,
    late: bool = False,
) -> Iterator[None]:
    masks: list[Any] = [None]

    def note(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        masks[0] = kwargs.get("attention_mask")

    def run(hidden: Tensor, calls: Sequence[Call]) -> Any:
        caches = [_CachePlaces(cache, steps, place) for cache in caches_of(calls)]
        positions = token_positions(hidden, calls, masks[0]) if maps else hidden
        seen: Counter[int] = Counter()
        output: Any = hidden
        for step in steps:
            if not isinstance(step, int):
                output = maps[step](first_of(output), positions)
                continue
            call = calls[step]
            with ExitStack() as stack:
                for cache in caches:
                    stack.enter_context(cache.at(step, seen[step]))
                output = place.blocks[step](first_of(output), *call.args, **call.kwargs)
            seen[step] += 1
        for cache in caches:
            cache.pass_unrun(seen, hidden)
        return output

    handle = place.owner.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with stood_in(place, run, late=late):
            yield
    finally:
        handle.remove()


class _CachePlaces:
    """A KV cache in which a block that runs again has a place of its own for each time."""

    def __init__(self, cache: Any, steps: Sequence[Step], place: BlockList) -> None:
        self._layers = cache.layers
        self._count = len(place.blocks)
        blocks = [step for step in steps if isinstance(step, int)]
        again = [block for i, block in enumerate(blocks) if block in blocks[:i]]
        grows = cache.layer_class_to_replicate
        while grows is not None and len(cache.layers) < self._count:
            cache.layers.append(grows())
        if len(cache.layers) == self._count and again:
            if any(_holds_tokens(layer) for layer in cache.layers):
                raise ConfigError(
                    "the KV cache was filled outside this layer program, in which layers run more "
                    "than once; start with an empty one."
                )
            # Behind the blocks' own, so that whatever is done to a whole cache reaches them too.
            cache.layers.extend(copy.deepcopy(cache.layers[block]) for block in again)
        elif len(cache.layers) != self._count + len(again):
            raise ConfigError(
                "the KV cache was filled under another layer program; start with an empty one."
            )
        self._extra: dict[tuple[int, int], int] = {}
        seen: Counter[int] = Counter()
        for number, block in enumerate(again):
            seen[block] += 1
            self._extra[block, seen[block]] = self._count + number

    @contextmanager
    def at(self, block: int, time: int) -> Iterator[None]:
        """Let a block find its place for the n-th time that it runs."""
        layers, other = self._layers, self._extra.get((block, time), block)
        layers[block], layers[other] = layers[other], layers[block]
        try:
            yield
        finally:
            layers[block], layers[other] = layers[other], layers[block]

    def pass_unrun(self, seen: Mapping[int, int], hidden: Tensor) -> None:
        """Tell the places of blocks that do not run how many tokens have passed."""
        for block in range(self._count):
            if not seen[block]:
                _pass_tokens(self._layers[block], hidden)


def _pass_tokens(layer: Any, hidden: Tensor) -> None:
    rows, width = hidden.shape[:2]
    if hasattr(layer, "get_seq_length"):
        known = [getattr(layer, name, None) for name in ("keys", "values")]
        shapes = [(1, 1) if t is None or t.ndim < 4 else (t.shape[1], t.shape[3]) for t in known]
        layer.update(*(hidden.new_zeros((rows, heads, width, size)) for heads, size in shapes))
    if hasattr(layer, "update_conv_state"):
        # Whether it has seen anything is all that others ask of it.
        for number in range(getattr(layer, "number_of_states", 1)):
            layer.update_conv_state(hidden.new_zeros((rows, 1, 1)), *([number] if number else []))


def _holds_tokens(layer: Any) -> bool:
    if hasattr(layer, "get_seq_length") and int(layer.get_seq_length()):
        return True
    seen = getattr(layer, "has_previous_state", False)
    return any(seen.values()) if isinstance(seen, dict) else bool(seen)


def caches_of(calls: Sequence[Call]) -> list[Any]:
    """Return the KV caches that blocks are called with."""
    values = [value for call in calls for value in (*call.args, *call.kwargs.values())]
    return list({id(value): value for value in values if _is_cache(value)}.values())


def _is_cache(value: Any) -> bool:
    from transformers.cache_utils import Cache

    return isinstance(value, Cache)


def token_positions(
    hidden: Tensor, calls: Sequence[Call], mask: Tensor | None
) -> Int[Tensor, "#row pos"]:
    """Return where in its text each token stands that the blocks are about to see.

    Args:
        calls: What the blocks are called with.
        mask: What the model was told of padding, earlier tokens included.
    """
    width = hidden.shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        found = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
    else:
        told = [call.kwargs.get("position_ids") for call in calls]
        found = next((p for p in told if isinstance(p, Tensor) and p.ndim == 2), None)
    caches = caches_of(calls)
    if found is None:
        # Mamba is told of padding with the prompt alone, and of positions never.
        past = next((vars(cache)[_PASSED] for cache in caches if _PASSED in vars(cache)), 0)
        found = torch.arange(width, device=hidden.device)[None] + past
    for cache in caches:
        setattr(cache, _PASSED, found[:, -1:] + 1)
    return found
