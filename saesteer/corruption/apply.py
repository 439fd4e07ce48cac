"""Running a layer program on the shared model: nothing is copied, everything is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from saesteer.corruption.program import LinearSpan, Program
from saesteer.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.corruption.edits import Means
    from saesteer.corruption.linear_map import LinearMap

HiddenMap = Callable[[Tensor, Tensor], Tensor]


class Slot:
    """One application of a block: what Hugging Face's loop over the blocks calls in its place.

    Args:
        block: The block; None where none runs.
        index: Which place in the KV cache is this application's own.
        before: Maps of the residual stream before the block.
        after: Maps behind it.
        boxed: Whether the model's blocks return a tuple; needed where none runs.
    """

    def __init__(
        self,
        block: nn.Module | None,
        index: int,
        before: Sequence[HiddenMap] = (),
        after: Sequence[HiddenMap] = (),
        *,
        boxed: bool = False,
    ) -> None:
        self.block, self.index, self.boxed = block, index, boxed
        self.before, self.after = tuple(before), tuple(after)

    def __getattr__(self, name: str) -> Any:
        # Some models ask a block for its own facts, such as its kind of attention.
        return getattr(self.__dict__["block"], name)

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        args = tuple(_own_place(value, self.index) for value in args)
        kwargs = {name: _own_place(value, self.index) for name, value in kwargs.items()}
        positions = token_positions(hidden, args, kwargs) if self.before or self.after else hidden
        for one in self.before:
            hidden = one(hidden, positions)
        if self.block is None:
            _note_tokens(hidden, [*args, *kwargs.values()])
            return (hidden,) if self.boxed else hidden
        output = self.block(hidden, *args, **kwargs)
        for one in self.after:
            if isinstance(output, tuple):
                output = (one(output[0], positions), *output[1:])
            else:
                output = one(output, positions)
        return output


class _CacheView:
    """A KV cache in which a block finds its application's place, whatever its own number."""

    def __init__(self, cache: Any, index: int) -> None:
        self._cache, self._index = cache, index

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_cache"], name)

    def passed(self) -> int:
        """Return how many tokens this application has seen."""
        return int(self._cache.get_seq_length(self._index))

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        return self._cache.update(keys, values, self._index, *args, **kwargs)


class Ordered(nn.ModuleList):
    """A model's blocks under their own names, which iterates over slots instead.

    Names stay those of the blocks, so hooks on "model.layers.3" reach block 3 wherever it runs.
    """

    def __init__(self, blocks: nn.ModuleList, slots: Sequence[Slot]) -> None:
        super().__init__(blocks)
        self.slots = tuple(slots)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.slots)

    def __getitem__(self, index: Any) -> Any:
        return self.slots[index] if isinstance(index, slice) else super().__getitem__(index)


class BlockList(NamedTuple):
    """Where a Hugging Face model keeps its blocks.

    Attributes:
        root: The causal language model.
        owner: The module that holds the list.
        name: The list's name there.
        blocks: The list.
    """

    root: nn.Module
    owner: nn.Module
    name: str
    blocks: nn.ModuleList


def block_lists(model: TransformerBridge) -> tuple[BlockList, BlockList]:
    """Return the blocks of the plain model and of the bridge's.

    Raises:
        ModelError: The model does not keep its blocks in one list.
    """
    from saesteer.models import plain_model

    mapping: Any = model.adapter.component_mapping
    path = str(mapping["blocks"].name) if "blocks" in mapping else ""
    parent, _, name = path.rpartition(".")
    found = []
    for root in (plain_model(model), model.original_model):
        owner = root.get_submodule(parent) if path else root
        blocks = getattr(owner, name, None) if path else None
        if not isinstance(blocks, nn.ModuleList) or not hasattr(owner, "config"):
            raise ModelError(
                f"model {model.cfg.model_name} does not keep its layers in one list, so no layer "
                "program can run on it; choose a decoder-only model."
            )
        found.append(BlockList(root, owner, name, blocks))
    return found[0], found[1]


def returns_tuple(place: BlockList) -> bool:
    """Return whether the blocks hand on a tuple, as those of some older architectures do."""
    seen: list[bool] = []
    handle = place.blocks[0].register_forward_hook(
        lambda _module, _args, output: seen.append(isinstance(output, tuple))
    )
    root: Any = place.root
    try:
        with torch.inference_mode():
            device = root.get_input_embeddings().weight.device
            root(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


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

    Example:
        >>> with corrupted(model, parse_program("skip 3", 30)):  # doctest: +SKIP
        ...     logits = model(tokens)
    """
    from saesteer.corruption.edits import edited

    _check_fits(model, program, maps or {})
    with ExitStack() as stack:
        for place in block_lists(model):
            slots, kinds = _slots(place, program, maps or {})
            stack.enter_context(in_order(place, slots, kinds))
        stack.enter_context(edited(model, program.edits, means))
        yield model


@contextmanager
def in_order(place: BlockList, slots: Sequence[Slot], kinds: Sequence[int]) -> Iterator[None]:
    """Put slots in the place of a model's blocks.

    Args:
        place: The blocks.
        slots: What runs instead.
        kinds: For every slot the layer whose kind of attention (full or sliding) it has.

    Raises:
        ConfigError: Slots are there already.
    """
    config: Any = place.owner.config
    if isinstance(place.blocks, Ordered):
        raise ConfigError("a layer program is running already; leave it before starting another.")
    changed: dict[str, Any] = {"num_hidden_layers": len(slots)}
    # Masks, rotary positions and the KV cache are made by these, an entry for each layer run.
    for name in ("layer_types", "mlp_layer_types"):
        types = getattr(config, name, None)
        if types is not None:
            changed[name] = [types[kind] for kind in kinds]
    earlier = {name: getattr(config, name) for name in changed}
    # Past __setattr__, which would register the new list at the end of the modules.
    modules = place.owner._modules
    try:
        for name, value in changed.items():
            setattr(config, name, value)
        modules[place.name] = Ordered(place.blocks, slots)
        yield
    finally:
        modules[place.name] = place.blocks
        for name, value in earlier.items():
            setattr(config, name, value)


def _slots(
    place: BlockList, program: Program, maps: Mapping[LinearSpan, LinearMap]
) -> tuple[list[Slot], list[int]]:
    """Return slots, and the layer that each is of; maps hang on the block before or behind them."""
    slots: list[Slot] = []
    kinds: list[int] = []
    waiting: list[HiddenMap] = []
    for step in program.steps:
        if isinstance(step, LinearSpan):
            waiting.append(maps[step])
            continue
        slots.append(Slot(place.blocks[step], len(slots), before=waiting))
        kinds.append(step)
        waiting = []
    if not slots:
        # A slot all the same: the cache has to know how many tokens have passed.
        return [Slot(None, 0, before=waiting, boxed=returns_tuple(place))], [0]
    slots[-1].after = tuple(waiting)
    return slots, kinds


def _check_fits(
    model: TransformerBridge, program: Program, maps: Mapping[LinearSpan, LinearMap]
) -> None:
    if program.n_layers != int(model.cfg.n_layers):
        raise ConfigError(
            f"program '{program}' was read for {program.n_layers} layers and the model has "
            f"{model.cfg.n_layers}; read it again for this model."
        )
    for span in program.spans:
        if span not in maps:
            raise ConfigError(
                f"program '{program}' has no map for '{span}'; fit one with fit_linear_maps."
            )


def token_positions(hidden: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return where in its text each token stands that a block is about to see."""
    positions = kwargs.get("position_ids")
    if isinstance(positions, Tensor):
        return positions
    caches = [value for value in (*args, *kwargs.values()) if isinstance(value, _CacheView)]
    past = caches[0].passed() if caches else 0
    return torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]


def _is_cache(value: Any) -> bool:
    from transformers.cache_utils import Cache

    return isinstance(value, Cache)


def _own_place(value: Any, index: int) -> Any:
    return _CacheView(value, index) if _is_cache(value) else value


def _note_tokens(hidden: Tensor, values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, _CacheView):
            nothing = torch.zeros(
                (hidden.shape[0], 1, hidden.shape[1], 1), dtype=hidden.dtype, device=hidden.device
            )
            value.update(nothing, nothing, 0)
