"""What reaches the receivers along the residual stream when one sender changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saesteer.patching.batch import Direction
from saesteer.patching.engine.blocks import BlockRunner, Run
from saesteer.patching.engine.patches import at_columns
from saesteer.patching.target import heads_of, required_target
from saesteer.utils.errors import ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Tokens that pass an MLP at once; more run no faster and take more memory.
TOKENS_AT_ONCE = 8192

Stream = Float[Tensor, "sender token d_model"]


class Tokens(NamedTuple):
    """The places of the prompts where receivers read something else."""

    pair: Int[Tensor, " token"]
    column: Int[Tensor, " token"]
    # Whether senders change there.
    sent: Bool[Tensor, " token"]

    def of(self, whole: Float[Tensor, "pair pos width"]) -> Float[Tensor, "token width"]:
        """Return the tokens' own rows of an activation."""
        return whole[self.pair, self.column]


class Streams:
    """The residual stream at some tokens, once for every sender that changes it.

    With attention frozen no token reads another, so the blocks between sender and receiver come
    down to what is added at each token: the destination's own attention output, and the MLP's,
    frozen as well or computed anew.

    Args:
        model: The model.
        runner: The same, block by block.
        direction: The prompts.
        destination: The destination's kept run with "z", "attn_out" and "mlp_out".
        source: The source's run with "z", or "mlp_out" if MLPs send.
        tokens: The tokens.
        recompute: Compute the MLPs in between anew.
    """

    def __init__(
        self,
        model: TransformerBridge,
        runner: BlockRunner,
        direction: Direction,
        destination: Run,
        source: Run,
        tokens: Tokens,
        *,
        recompute: bool,
    ) -> None:
        self._model, self._runner, self._tokens = model, runner, tokens
        self._destination, self._source, self._direction = destination, source, direction
        self._recompute = recompute
        mapping: Any = model.adapter.component_mapping
        self._parts: Any = mapping["blocks"].submodules
        self._heads = heads_of(model, "z")
        # Some models' MLPs stand beside attention and read what enters the block.
        self._beside = bool(model.cfg.parallel_attn_mlp)
        # How blocks are put together is read off the adapter; that it is so is tried, as a wrong
        # number would not show.
        allowed = 1e-3 if runner.model.dtype == torch.float32 else 0.1
        if not {"ln1", "attn", "mlp"} <= set(self._parts) or self._discrepancy() > allowed:
            raise ModelError(
                f"path patching does not know how the blocks of {model.cfg.model_name} put heads, "
                "attention and MLP together, so it would be wrong there; use activation patching "
                "of its heads."
            )

    def by_block(
        self, senders: str, layers: Iterable[int], upto: int
    ) -> Iterator[tuple[int, Stream, list[tuple[int, int]]]]:
        """Yield the stream in front of every block, and behind the last.

        Args:
            senders: "z" for heads, "mlp_out" for MLPs.
            layers: The layers that send.
            upto: The last block to stand in front of; one more than the last layer for the end.

        Yields:
            The block's number, the stream of every sender below it, and these senders as layer
            and head (0 for an MLP).
        """
        wanted = set(layers)
        names: list[tuple[int, int]] = []
        stream: Tensor | None = None
        for layer in range(upto + 1):
            before = self._tokens.of(self._destination.residual[layer])
            stream = before[None][:0] if stream is None else stream
            yield layer, stream, list(names)
            if layer == upto:
                return
            entered, stream = stream, stream + self._part("attn_out", layer)
            if senders == "z" and layer in wanted:
                stream = torch.cat([stream, before + self._with_heads_replaced(layer)])
                entered = torch.cat([entered, before.expand(self._heads, -1, -1)])
                names += [(layer, head) for head in range(self._heads)]
            if self._recompute:
                stream = stream + self._mlp(layer, entered if self._beside else stream)
            else:
                stream = stream + self._part("mlp_out", layer)
            if senders == "mlp_out" and layer in wanted:
                moved = before + self._part("attn_out", layer) + self._from_source(senders, layer)
                stream = torch.cat([stream, moved[None]])
                names.append((layer, 0))

    def read(
        self, component: str, layer: int, stream: Stream, heads: Sequence[int]
    ) -> Float[Tensor, "sender token width"]:
        """Return the queries, keys or values that some heads of a block make of the stream."""
        target = required_target(self._model, component, layer)
        norm = self._module(layer, "ln1")

        def of_heads(rows: Tensor) -> Tensor:
            whole = target.columns(target.module(norm(rows)))
            each = whole.shape[-1] // heads_of(self._model, component)
            return whole[..., head_columns(heads, each, whole.device)]

        return _in_parts(of_heads, stream)

    def _mlp(self, layer: int, stream: Stream) -> Stream:
        """Return what a block's MLP adds for the stream that it reads."""
        norm = "ln2" if "ln2" in self._parts else "ln1"
        names = [name for name in (norm, "mlp", "ln2_post") if name in self._parts]
        modules = [self._module(layer, name) for name in names]
        return _in_parts(lambda rows: _through(modules, rows), stream)

    def _attention_output(self, layer: int, z: Float[Tensor, "... width"]) -> Stream:
        """Return what heads' outputs add to the stream."""
        modules = [required_target(self._model, "z", layer).module]
        if "ln1_post" in self._parts:
            modules.append(self._module(layer, "ln1_post"))
        return _in_parts(lambda rows: _through(modules, rows), z)

    def _with_heads_replaced(self, layer: int) -> Float[Tensor, "head token d_model"]:
        own, other = self._part("z", layer), self._from_source("z", layer)
        width = own.shape[-1] // self._heads
        which = torch.arange(self._heads, device=own.device).repeat_interleave(width)
        head = torch.arange(self._heads, device=own.device)[:, None, None]
        return self._attention_output(layer, torch.where(which == head, other, own))

    def _part(self, component: str, layer: int) -> Float[Tensor, "token width"]:
        return self._tokens.of(self._destination.parts[component, layer])

    def _from_source(self, component: str, layer: int) -> Float[Tensor, "token width"]:
        whole = self._source.parts[component, layer]
        other = self._tokens.of(at_columns(whole, self._direction.to_source))
        return torch.where(self._tokens.sent[:, None], other, self._part(component, layer))

    def _module(self, layer: int, name: str) -> nn.Module:
        return self._runner.blocks[layer].get_submodule(self._parts[name].name)

    def _discrepancy(self) -> float:
        """Return how far blocks made of their parts are from the real ones, as a share of size."""
        worst = 0.0
        residual = self._destination.residual
        for layer in range(len(self._runner.blocks)):
            before, after = (self._tokens.of(residual[at]) for at in (layer, layer + 1))
            attention, mlp = (self._part(name, layer) for name in ("attn_out", "mlp_out"))
            pairs = (
                (self._attention_output(layer, self._part("z", layer)), attention),
                (self._mlp(layer, before if self._beside else before + attention), mlp),
                (before + attention + mlp, after),
            )
            for ours, theirs in pairs:
                size = float(theirs.float().abs().max().clamp(min=1e-6))
                worst = max(worst, float((ours - theirs).float().abs().max()) / size)
        return worst


def head_columns(heads: Sequence[int], width: int, device: torch.device) -> Int[Tensor, " column"]:
    """Return the columns of some heads where heads stand side by side."""
    starts = torch.tensor(list(heads), device=device) * width
    return (starts[:, None] + torch.arange(width, device=device)).flatten()


def _through(modules: Iterable[nn.Module], rows: Tensor) -> Tensor:
    for module in modules:
        out: Any = module(rows)
        rows = out[0] if isinstance(out, tuple) else out
    return rows


def _in_parts(function: Callable[[Tensor], Tensor], stream: Tensor) -> Tensor:
    """Return a function of every token, computed for some thousands at a time."""
    flat = stream.flatten(0, -2)
    if not len(flat):
        # Its width is only known from what comes out.
        empty = function(stream.new_zeros((1, 1, stream.shape[-1])))
        return empty.new_zeros((*stream.shape[:-1], empty.shape[-1]))
    parts = [function(rows[:, None])[:, 0] for rows in flat.split(TOKENS_AT_ONCE)]
    return torch.cat(parts).unflatten(0, stream.shape[:-1])
