"""A model's blocks, run one by one with the arguments that the model itself calls each with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saesteer.models.hooks import first_of, unhooked
from saesteer.models.loading import plain_model
from saesteer.utils.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Of the logits' standard deviation; half precision rounds differently in other orders.
TOLERANCE = {torch.float32: 1e-3}
ROUGH = 0.2
N_TRIED = 6


class Call(NamedTuple):
    """What a model calls a block with, beside the residual stream: its own masks, positions, ..."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


# From what enters the first block, and every block's own call, to what the last one hands on.
BlockRun = Callable[[Float[Tensor, "row pos d_model"], Sequence[Call]], Any]


class BlockList(NamedTuple):
    """Where a Hugging Face causal language model, `root`, keeps its blocks."""

    root: nn.Module
    # The module that holds the list, and the list's name there.
    owner: nn.Module
    name: str
    blocks: nn.ModuleList


def block_lists(model: TransformerBridge) -> tuple[BlockList, BlockList]:
    """Return the blocks of the plain model and of the bridge's."""
    mapping: Any = model.adapter.component_mapping
    path = str(mapping["blocks"].name) if "blocks" in mapping else ""
    parent, _, name = path.rpartition(".")
    found = []
    for root in (plain_model(model), model.original_model):
        owner = root.get_submodule(parent) if path else root
        blocks = getattr(owner, name, None) if path else None
        if not isinstance(blocks, nn.ModuleList):
            raise ModelError(
                f"model {model.cfg.model_name} does not keep its layers in one list, so no layer "
                "program can run on it; choose a decoder-only model."
            )
        found.append(BlockList(root, owner, name, blocks))
    return found[0], found[1]


@contextmanager
def stood_in(place: BlockList, run: BlockRun, *, late: bool = False) -> Iterator[None]:
    """Let a function run in the place of a model's loop over its blocks.

    On every pass inside, the model prepares each block's arguments as ever (masks and rotary
    positions by the layer's kind, inputs of its own, the cache) and calls nothing but stand-ins;
    then `run` gets them all and says what the last block hands on, which may be a block's output
    as it is. Hooks stay on the blocks. A model that its blocks, called one by one, do not make up
    is refused: at once, or where it is asked to be `late`, on the first pass inside.
    """
    if isinstance(place.blocks, _Loop):
        raise ConfigError("a layer program is running already; leave it before starting another.")
    try:
        shape = _shape_of(place)
    except ModelError as error:
        if not late:
            raise
        shape, run = _Shape(boxed=False, cuts=False), partial(_refuse, error)
    with _in_loop(place, run, shape):
        yield


def _refuse(error: ModelError, *_: Any) -> Any:
    raise error


class _Shape(NamedTuple):
    """How a model handles its blocks."""

    # They return tuples, as those of some older architectures do.
    boxed: bool
    # Some see no more positions than logits are asked for.
    cuts: bool


_SHAPES: WeakKeyDictionary[nn.Module, _Shape | ModelError] = WeakKeyDictionary()


class _Loop(nn.ModuleList):
    """A model's blocks under their own names, which iterates over stand-ins."""

    def __init__(self, place: BlockList, run: BlockRun, boxed: bool) -> None:
        super().__init__(place.blocks)
        self._stand_ins = [_StandIn(self, block, i) for i, block in enumerate(place.blocks)]
        self._run, self._boxed = run, boxed
        self._first = torch.empty(0)
        self._calls: list[Call] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stand_ins)

    def __getitem__(self, index: Any) -> Any:
        return self._stand_ins[index] if isinstance(index, slice) else super().__getitem__(index)

    def called(self, number: int, hidden: Tensor, args: Any, kwargs: Any) -> Any:
        if number == 0:
            self._first, self._calls = hidden, []
        if number != len(self._calls) or hidden.shape != self._first.shape:
            raise ModelError("the model does not call its blocks one after the other.")
        self._calls.append(Call(args, kwargs))
        output: Any = hidden
        if number == len(self._stand_ins) - 1:
            first, calls = self._first, self._calls
            self._first, self._calls = torch.empty(0), []
            output = self._run(first, calls)
        return (output,) if self._boxed and isinstance(output, Tensor) else output


class _StandIn:
    def __init__(self, loop: _Loop, block: nn.Module, number: int) -> None:
        self._loop, self._block, self._number = loop, block, number

    def __getattr__(self, name: str) -> Any:
        # Some models ask a block for its own facts, such as its kind of attention.
        return getattr(self.__dict__["_block"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        return self._loop.called(self._number, args[0], args[1:], kwargs)


@contextmanager
def _in_loop(place: BlockList, run: BlockRun, shape: _Shape) -> Iterator[None]:
    with ExitStack() as stack:
        if shape.cuts:
            handle = place.root.register_forward_pre_hook(_all_logits, with_kwargs=True)
            stack.callback(handle.remove)
        # Past __setattr__, which would register the new list at the end of the modules.
        modules = place.owner._modules
        stack.callback(modules.__setitem__, place.name, place.blocks)
        modules[place.name] = _Loop(place, run, shape.boxed)
        yield


def _all_logits(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return args, {name: value for name, value in kwargs.items() if name != "logits_to_keep"}


def _shape_of(place: BlockList) -> _Shape:
    """Try once whether a model's blocks, called one by one, are the model."""
    if place.root not in _SHAPES:
        with unhooked(place.root), torch.no_grad():
            try:
                _SHAPES[place.root] = _tried(place)
            except Exception as error:
                _SHAPES[place.root] = ModelError(
                    f"{type(place.root).__name__}'s layers cannot be run one by one "
                    f"({one_line(error)}), so no layer program can run on it; choose another "
                    "architecture."
                )
    found = _SHAPES[place.root]
    if isinstance(found, ModelError):
        raise found
    return found


def _tried(place: BlockList) -> _Shape:
    root: Any = place.root
    ids = trial_ids(root)
    outputs: list[Any] = []
    with ExitStack() as stack:
        for block in place.blocks:
            keep = block.register_forward_hook(
                lambda _module, _args, output: outputs.append(output)
            )
            stack.callback(keep.remove)
        wanted = root(input_ids=ids, use_cache=False).logits
        boxed = isinstance(outputs[0], tuple)
        # Where layers share keys and values, some see no more positions than logits are asked for.
        if "logits_to_keep" in inspect.signature(root.forward).parameters:
            root(input_ids=ids, use_cache=False, logits_to_keep=1)
    cuts = len({first_of(output).shape for output in outputs}) > 1
    reached: list[bool] = []

    def in_order(hidden: Tensor, calls: Sequence[Call]) -> Any:
        reached.append(True)
        output: Any = hidden
        for block, call in zip(place.blocks, calls, strict=True):
            output = block(first_of(output), *call.args, **call.kwargs)
        return output

    shape = _Shape(boxed, cuts)
    with _in_loop(place, in_order, shape):
        got = root(input_ids=ids, use_cache=False).logits
    if not reached:
        raise ModelError("the model does not call its blocks one after the other.")
    check_alike(got, wanted, root.dtype)
    return shape


def trial_ids(root: Any) -> Tensor:
    """Return one row of a few made-up token ids."""
    weight = root.get_input_embeddings().weight
    return (torch.arange(3, 3 + N_TRIED, device=weight.device) % len(weight))[None]


def check_alike(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Check that logits are the same but for rounding."""
    difference, spread = (got - wanted).abs().max().item(), wanted.float().std().item()
    if not difference <= TOLERANCE.get(dtype, ROUGH) * spread:
        raise ModelError(f"logits differ by {difference:.3g}, where they spread by {spread:.3g}")


def one_line(error: Exception) -> str:
    """Return what an exception says, on one line, without its full stop."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
