"""A model run block by block, on any rows and any window of columns of its prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saesteer.models.blocks import (
    ROUGH,
    TOLERANCE,
    Call,
    block_lists,
    first_of,
    stood_in,
    trial_ids,
)
from saesteer.models.forward import last_logits
from saesteer.models.hooks import HookTarget, keeping
from saesteer.models.loading import plain_model
from saesteer.models.unembed import Unembedding
from saesteer.patching.batch import Direction
from saesteer.patching.engine.rows import out_of_memory
from saesteer.utils.errors import ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hidden = Float[Tensor, "row pos d_model"]
NAME = "saesteer_window"
Pattern = Float[Tensor, "row head query key"]


class EnoughError(Exception):
    """Ends a block's pass once its keys and values are known."""


@dataclass
class KVWindow:
    """What attention needs to know beside the columns that run."""

    # Of the columns before the window, positions applied; None where there is none.
    keys: Float[Tensor, "row head pos d_head"] | None = None
    values: Float[Tensor, "row head pos d_head"] | None = None
    # Changes the pattern of the whole batch.
    edit: Callable[[Pattern], Pattern] | None = None
    # What to put into `kept`: the window's own keys and values, and the pattern behind them.
    keep: bool = False
    keep_pattern: bool = False
    # Whether to end the pass when the keys and values are kept.
    stop: bool = False
    kept: list[Tensor] = field(default_factory=list)


@dataclass
class Run:
    """An unpatched run, block by block; what is not kept is empty."""

    # Prompts and columns.
    shape: tuple[int, int]
    # For every block the further arguments that the model calls it with: masks and positions of
    # whole prompts.
    calls: list[Call]
    # What leaves the last block at the last column.
    last: Float[Tensor, "pair d_model"]
    # What enters every block, and what leaves the last.
    residual: list[Float[Tensor, "pair pos d_model"]] = field(default_factory=list)
    # Every block's keys, positions applied, and values.
    keys: list[Float[Tensor, "pair head pos d_head"]] = field(default_factory=list)
    values: list[Float[Tensor, "pair head pos d_head"]] = field(default_factory=list)
    # Components by name and layer.
    parts: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def past(self, layer: int, pair: Int[Tensor, " row"], first: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the columns before one."""
        return self.keys[layer][pair, :, :first], self.values[layer][pair, :, :first]


class BlockRunner:
    """A plain Hugging Face model whose blocks can be called one by one.

    Its attention must take windows meanwhile (`windows_allowed`).
    """

    def __init__(self, model: TransformerBridge) -> None:
        self._place, _ = block_lists(model)
        self.model: Any = self._place.root
        self.blocks: list[nn.Module] = list(self._place.blocks)
        self.logits = Unembedding(model).logits

    def run(
        self,
        ids: Int[Tensor, "pair pos"],
        mask: Bool[Tensor, "pair pos"],
        *,
        keep: bool = False,
        parts: Mapping[tuple[str, int], HookTarget | None] | None = None,
    ) -> Run:
        """Run prompts unpatched and keep what patched runs need of them.

        Args:
            ids: Token ids, padded on the left.
            mask: True at real tokens.
            keep: Keep residuals, keys and values: for the destination of patches.
            parts: Components to keep, by name and layer; of None the attention pattern.
        """
        hidden, calls = self._open(ids, mask)
        pair = torch.arange(len(ids), device=hidden.device)
        run = Run((len(ids), ids.shape[1]), calls, hidden, [hidden] if keep else [])
        asked = dict(parts or {})
        targets = {key: target for key, target in asked.items() if target is not None}
        with keeping(targets, keep=Tensor.clone) as kept:
            for layer in range(len(self.blocks)):
                names = [key for key, one in asked.items() if one is None and key[1] == layer]
                window = KVWindow(keep=keep, keep_pattern=bool(names))
                hidden = self.block(layer, hidden, run, pair, 0, window)
                run.parts |= dict.fromkeys(names, window.kept[-1]) if names else {}
                if keep:
                    run.residual.append(hidden)
                    run.keys.append(window.kept[0])
                    run.values.append(window.kept[1])
        run.parts |= kept
        run.last = hidden[:, -1].clone()
        return run

    def block(
        self, layer: int, hidden: Hidden, run: Run, pair: Tensor, first: int, window: KVWindow
    ) -> Hidden:
        """Run one block on a window of columns from `first` on.

        Args:
            layer: The block's number.
            hidden: What it gets: the window's columns alone.
            run: The run of the prompts that the rows come from.
            pair: Every row's prompt.
            first: The window's first column.
            window: What its attention needs to know.
        """
        span = (first, first + hidden.shape[1])
        args, kwargs = (_cut(own, run.shape, pair, span) for own in run.calls[layer])
        return first_of(self.blocks[layer](hidden, *args, **kwargs, saesteer_window=window))

    def keys_of(
        self, layer: int, hidden: Hidden, run: Run, pair: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """Return a window's keys and values at one block, [row, head, pos, d_head] each."""
        window = KVWindow(keep=True, stop=True)
        try:
            self.block(layer, hidden, run, pair, first, window)
        except EnoughError:
            return window.kept[0], window.kept[1]
        raise ModelError("the model's attention does not take windows.")

    def _open(self, ids: Tensor, mask: Tensor) -> tuple[Hidden, list[Call]]:
        """Let the model prepare prompts without running a block."""
        first: list[Tensor] = []
        calls: list[Call] = []

        def record(hidden: Tensor, own: Sequence[Call]) -> Tensor:
            first.append(hidden)
            calls.extend(Call(args, {**kwargs, "use_cache": False}) for args, kwargs in own)
            return hidden

        with stood_in(self._place, record):
            last_logits(self.model, ids, mask)
        return first[0], calls


def _cut(value: Any, shape: tuple[int, int], pair: Tensor, span: tuple[int, int]) -> Any:
    """Take rows and a window of columns from what a model made for whole prompts."""
    if isinstance(value, tuple | list):
        return type(value)(_cut(inner, shape, pair, span) for inner in value)
    if isinstance(value, dict):
        return {name: _cut(inner, shape, pair, span) for name, inner in value.items()}
    if not isinstance(value, Tensor):
        return value
    rows, columns = shape
    first, stop = span
    if value.ndim == 1 and len(value) == columns:
        return value[first:stop]
    if value.ndim > 1 and value.shape[0] == rows:
        value = value[pair]
    if value.ndim == 4 and value.shape[2:] == (columns, columns):
        return value[:, :, first:stop, :stop]
    if value.ndim >= 2 and value.shape[1] == columns:
        return value[:, first:stop]
    return value


@contextmanager
def block_runner(model: TransformerBridge, direction: Direction) -> Iterator[BlockRunner | None]:
    """Give a runner of the model's blocks; None where blocks run one by one are not the model.

    Tried on one or two of the prompts: those with the most and the least padding.
    """
    plain: Any = plain_model(model)
    lengths = direction.mask.sum(dim=1)
    few = torch.stack([lengths.argmin(), lengths.argmax()]).unique()
    ids, mask = direction.ids[few], direction.mask[few]
    wanted = last_logits(plain, ids, mask).float()
    runner = None
    if _keys_alone(plain):
        try:
            with windows_allowed(plain):
                got = _windowed(BlockRunner(model), ids, mask)
            loose = TOLERANCE.get(plain.dtype, ROUGH) * wanted.std()
            if bool((got - wanted).abs().max() <= loose):
                runner = BlockRunner(model)
        except Exception as error:
            # Whatever an unknown architecture does that windows cannot: the plain loop can.
            if out_of_memory(error):
                raise
    if runner is None:
        yield None
        return
    with windows_allowed(plain):
        yield runner


def _keys_alone(plain: Any) -> bool:
    """Return whether keys and values are all that later tokens read of earlier ones."""
    said = plain(input_ids=trial_ids(plain), use_cache=True)
    caches = [value for value in said.values() if hasattr(value, "get_seq_length")]
    layers = [layer for cache in caches for layer in cache.layers]
    return bool(layers) and all(
        hasattr(layer, "keys") and not hasattr(layer, "update_conv_state") for layer in layers
    )


def _windowed(runner: BlockRunner, ids: Tensor, mask: Tensor) -> Float[Tensor, "row vocab"]:
    run = runner.run(ids, mask, keep=True)
    # In the middle of the shorter prompt, so that something stands before the window in both.
    first = ids.shape[1] - (int(mask.sum(dim=1).min()) + 1) // 2
    pair = torch.arange(len(ids), device=run.last.device)
    hidden = run.residual[0][:, first:]
    for layer in range(len(runner.blocks)):
        past = run.past(layer, pair, first)
        hidden = runner.block(layer, hidden, run, pair, first, KVWindow(*past))
    return runner.logits(hidden[:, -1])


def window_attention(
    module: nn.Module,
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row kv_head query d_head"],
    value: Float[Tensor, "row kv_head query d_head"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    saesteer_window: KVWindow | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row query head d_head"], Pattern | None]:
    """Attend as transformers' attention functions do, to a window's own past besides.

    Query, key and value have their positions applied; there is no dropout, as nothing is trained.
    """
    window = saesteer_window or KVWindow()
    if window.keep:
        window.kept += [key, value]
    if window.stop:
        raise EnoughError
    if window.keys is not None and window.values is not None:
        key = torch.cat([window.keys, key], dim=2)
        value = torch.cat([window.values, value], dim=2)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if window.edit is None and not window.keep_pattern and softcap is None:
        heads = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=True
        )
        return heads.transpose(1, 2), None
    pattern = _pattern(query, key, attention_mask, scale, softcap)
    if window.edit is not None:
        pattern = window.edit(pattern)
    if window.keep_pattern:
        window.kept.append(pattern)
    heads = pattern @ _for_every_head(value, query.shape[1])
    return heads.transpose(1, 2), pattern


@contextmanager
def windows_allowed(model: nn.Module) -> Iterator[None]:
    """Let a Hugging Face model's attention take windows, for as long as the context lasts."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, window_attention)
    # The mask as numbers to add, never left out: windows are cut from it.
    AttentionMaskInterface.register(NAME, eager_mask)
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _pattern(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Pattern:
    scores = query @ _for_every_head(key, query.shape[1]).transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)


def _for_every_head(shared: Tensor, heads: int) -> Tensor:
    return shared.repeat_interleave(heads // shared.shape[1], dim=1)
