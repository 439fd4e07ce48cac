"""A model run block by block, on any rows and any window of columns of its prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saesteer.models.blocks import Call, block_lists, first_of, stood_in
from saesteer.patching.engine.attention import EnoughError, Window
from saesteer.patching.prompts.batch import position_ids
from saesteer.utils.errors import ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hidden = Float[Tensor, "row pos d_model"]


@dataclass(frozen=True)
class Prompts:
    """Prompts at the model's door, before the first block.

    Attributes:
        embedded: What the first block gets.
        calls: For every block the further arguments that the model calls it with: masks and
            positions of whole prompts.
    """

    embedded: Float[Tensor, "pair pos d_model"]
    calls: tuple[Call, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """How many prompts, and how many columns each has."""
        return int(self.embedded.shape[0]), int(self.embedded.shape[1])


class Steps:
    """A plain Hugging Face model whose blocks can be called one by one.

    Its attention must take windows meanwhile (`windows_allowed`).

    Args:
        model: A model from `load_model`.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self._place, _ = block_lists(model)
        self.model: Any = self._place.root
        self.blocks: list[nn.Module] = list(self._place.blocks)
        self._head: Any = self.model.get_output_embeddings()

    def open(self, ids: Int[Tensor, "pair pos"], mask: Bool[Tensor, "pair pos"]) -> Prompts:
        """Let the model prepare prompts without running a block.

        Args:
            ids: Token ids, padded on the left.
            mask: True at real tokens.
        """
        first: list[Tensor] = []
        calls: list[Call] = []

        def record(hidden: Tensor, own: Sequence[Call]) -> Tensor:
            first.append(hidden)
            calls.extend(Call(args, {**kwargs, "use_cache": False}) for args, kwargs in own)
            return hidden

        with stood_in(self._place, record):
            self.model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=position_ids(mask),
                use_cache=False,
                logits_to_keep=1,
            )
        return Prompts(first[0], tuple(calls))

    def block(
        self,
        layer: int,
        hidden: Hidden,
        prompts: Prompts,
        pair: Int[Tensor, " row"],
        first: int,
        window: Window,
    ) -> Hidden:
        """Run one block on columns from `first` on.

        Args:
            layer: The block's number.
            hidden: What it gets: the window's columns alone.
            prompts: The prompts that the rows come from.
            pair: Every row's prompt.
            first: The window's first column.
            window: What its attention needs to know.
        """
        args, kwargs = prompts.calls[layer]
        span = (first, first + hidden.shape[1])
        cut = _Cut(prompts.shape, pair, span)
        out = self.blocks[layer](
            hidden, *(cut(a) for a in args), **cut(kwargs), saesteer_window=window
        )
        return first_of(out)

    def keys_of(
        self,
        layer: int,
        hidden: Hidden,
        prompts: Prompts,
        pair: Int[Tensor, " row"],
        first: int,
    ) -> tuple[Tensor, Tensor]:
        """Return a window's keys and values at one block, [row, head, pos, d_head] each."""
        window = Window(keep=True, stop=True)
        try:
            self.block(layer, hidden, prompts, pair, first, window)
        except EnoughError:
            return window.kept[0], window.kept[1]
        raise ModelError("the model's attention does not take windows.")

    def logits(
        self, hidden: Float[Tensor, "row d_model"], answers: Int[Tensor, "row 2"] | None
    ) -> Float[Tensor, "row column"]:
        """Return what the model says after its last block.

        Args:
            hidden: The last block's output at one position.
            answers: The two answers' token ids for every row; None for the whole vocabulary.
        """

        def of_answers(x: Tensor) -> Tensor:
            weight = self._head.weight[answers]
            out = (x[:, :, None] * weight[:, None]).sum(dim=-1)
            bias = getattr(self._head, "bias", None)
            return out if bias is None else out + bias[answers][:, None]

        # The model itself applies its last norm and what it does to logits (caps, scales).
        ids = torch.zeros((len(hidden), 1), dtype=torch.long, device=hidden.device)
        with stood_in(self._place, lambda *_: hidden[:, None]):
            if answers is None:
                return self.model(input_ids=ids, use_cache=False).logits[:, 0].float()
            with _standing_in(self._head, of_answers):
                return self.model(input_ids=ids, use_cache=False).logits[:, 0].float()


@dataclass(frozen=True)
class _Cut:
    """Takes rows and a window of columns from what a model made for whole prompts."""

    shape: tuple[int, int]
    pair: Tensor
    span: tuple[int, int]

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, tuple | list):
            return type(value)(self(inner) for inner in value)
        if isinstance(value, dict):
            return {name: self(inner) for name, inner in value.items()}
        return value

    def _tensor(self, value: Tensor) -> Tensor:
        rows, columns = self.shape
        first, stop = self.span
        if value.ndim == 1 and len(value) == columns:
            return value[first:stop]
        if value.ndim > 1 and value.shape[0] == rows:
            value = value[self.pair]
        if value.ndim == 4 and value.shape[2:] == (columns, columns):
            return value[:, :, first:stop, :stop]
        if value.ndim >= 2 and value.shape[1] == columns:
            return value[:, first:stop]
        return value


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a function stand in for a module's own forward."""
    before = vars(module).get("forward")
    try:
        module.forward = forward
        yield
    finally:
        if before is None:
            vars(module).pop("forward", None)
        else:
            module.forward = before  # type: ignore[method-assign]
