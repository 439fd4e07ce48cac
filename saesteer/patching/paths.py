"""Path patching: what one sender tells chosen receivers, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.hooks import SiteFunction, hooked
from saesteer.models.loading import plain_model
from saesteer.models.tokens import input_device
from saesteer.patching.batch import Direction, Mode, PairBatch, direction_of
from saesteer.patching.engine.blocks import BlockRunner, KVWindow, block_runner
from saesteer.patching.engine.engines import Scorer
from saesteer.patching.engine.rows import Memory
from saesteer.patching.metrics import Metric
from saesteer.patching.result import PatchResult
from saesteer.patching.streams import Streams, Tokens, head_columns
from saesteer.patching.target import Target, heads_of, required_target
from saesteer.utils.errors import ConfigError, ModelError
from saesteer.utils.progress import Progress, Task
from saesteer.utils.text import shorten

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Mlps = Literal["recomputed", "frozen"]
Senders = Literal["z", "mlp_out"]
FINAL = "final"
_HEAD = re.compile(r"(\d+)\.(\d+)\.([qkv])")

Positions = Sequence[int] | Tensor
# Senders' places in the flattened result, their pairs and their numbers.
Scored = tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"], Float[np.ndarray, " row"]]


class Receiver(NamedTuple):
    """One end of a path: "final", or the "q", "k" or "v" of a head.

    Where several query heads share keys and values, heads of "k" and "v" are counted among those.
    """

    component: str
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        if self.component == FINAL:
            return FINAL
        return f"{self.layer}.{self.head}.{self.component}"

    @classmethod
    def parse(cls, text: str) -> Receiver:
        """Return the receiver named by "final" or by text such as "9.6.q"."""
        if text == FINAL:
            return cls(FINAL)
        match = _HEAD.fullmatch(str(text).strip())
        if match is None:
            raise ConfigError(
                f"receiver {shorten(text)} is neither 'final' nor a head's input such as '9.6.q'; "
                "write layer, head and q, k or v."
            )
        return cls(match[3], int(match[1]), int(match[2]))


def chosen_receivers(
    model: TransformerBridge, receivers: str | Sequence[str]
) -> tuple[Receiver, ...]:
    """Return the receivers asked for."""
    given = (receivers,) if isinstance(receivers, str) else tuple(receivers)
    chosen = tuple(dict.fromkeys(map(Receiver.parse, given)))
    if not chosen:
        raise ConfigError("receivers: there is none; give 'final' or heads such as '9.6.q'.")
    if len(chosen) > 1 and any(one.component == FINAL for one in chosen):
        raise ConfigError(
            "receivers: 'final' cannot stand beside heads, which reach it by themselves; ask for "
            "it alone."
        )
    for one in chosen:
        if one.component == FINAL:
            continue
        layers, heads = int(model.cfg.n_layers), heads_of(model, one.component)
        if not (0 <= one.layer < layers and 0 <= one.head < heads):
            raise ConfigError(
                f"receiver {one}: the model has layers 0 to {layers - 1} and, of {one.component}, "
                f"heads 0 to {heads - 1}; choose one of them."
            )
    return chosen


def path_patching(
    model: TransformerBridge,
    batch: PairBatch,
    senders: Senders | str,
    receivers: str | Sequence[str],
    metric: Metric,
    *,
    mode: Mode = "denoising",
    mlps: Mlps = "recomputed",
    layers: Sequence[int] | None = None,
    sender_positions: Positions | None = None,
    receiver_positions: Positions | None = None,
    memory_gb: float = 2.0,
    progress: Progress | None = None,
) -> PatchResult:
    """Return what every sender does to the metric through chosen receivers alone.

    For every sender three runs define the number (Wang et al. 2022, "Interpretability in the
    Wild", appendix B; Goldowsky-Dill et al. 2023, "Localizing Model Behavior With Path Patching"):

    1. Source and destination run unpatched.
    2. The destination runs with the sender's output from the source and every other head's output
       frozen to the destination's; norms, and MLPs unless frozen too, are computed anew. What the
       receivers read is recorded.
    3. The destination runs with the receivers reading what was recorded, everything else computed
       anew. For the final residual stream the second run's own logits are the answer.

    With heads frozen no token reads another, so the second run is computed token by token, at the
    receivers' positions alone, for all senders at once, and the third starts at the lowest
    receiver's layer and first position.

    Args:
        model: A model from `load_model`.
        batch: The pairs.
        senders: "z" for every head, "mlp_out" for every MLP.
        receivers: "final" for the residual stream behind the last block, or any number of heads'
            queries, keys and values such as "9.6.q", all patched together.
        metric: What is measured.
        mode: As in `activation_patching`.
        mlps: Whether MLPs between sender and receiver are "recomputed", so that paths through them
            count, or "frozen", so that the direct path alone does. MLPs that stand beside
            attention (as in GPT-NeoX) do not read their own block's heads.
        layers: The senders' layers; all if None.
        sender_positions: Columns of the patched prompts, counted from the end if below 0, or a
            mask [pair, pos], where senders change; all that have a counterpart if None.
        receiver_positions: Columns where receivers read something else; all if None.
        memory_gb: About how much memory the senders' residual streams may take.
        progress: Shows how far it is.

    Returns:
        Values by layer and head, or by layer for MLPs. A sender behind every receiver has no path
        to it and leaves the metric as it is.

    Raises:
        ConfigError: A receiver, layer, position, mode or way does not exist.
        DataError: There is no pair.
        ModelError: The model's blocks are put together in an unknown way.
        SiteError: Its heads or MLPs cannot be told apart.
    """
    device = input_device(plain_model(model))
    whole = direction_of(batch, mode, device=device)
    for what, value, known in (
        ("senders", senders, get_args(Senders)),
        ("mlps", mlps, get_args(Mlps)),
    ):
        if value not in known:
            raise ConfigError(f"{what}: {value!r} is neither {known[0]!r} nor {known[1]!r}.")
    shape = (len(batch), batch.width)
    sending = _chosen_positions(sender_positions, shape, "sender_positions").to(device)
    reading = _chosen_positions(receiver_positions, shape, "receiver_positions").to(device)
    ends = chosen_receivers(model, receivers)
    target = Target.of(model, senders, layers=layers)
    heads = heads_of(model, "z") if senders == "z" else 1
    count = len(target.layers) * heads
    memory = Memory(model, batch.width, memory_gb)
    each = memory.pairs_with_streams(count, 1 if ends[0].component == FINAL else batch.width)
    found = []
    task = (progress or Progress()).task("path patching", len(batch) * count, "paths")
    with torch.inference_mode(), block_runner(model, whole) as runner, task as paths:
        if runner is None:
            raise ModelError(
                f"path patching calls a model's blocks one by one, and {model.cfg.model_name} "
                "cannot be run like that; use activation patching of its heads."
            )
        for first in range(0, len(batch), each):
            pairs = slice(first, first + each)
            direction = direction_of(batch, mode, pairs, device)
            recompute = mlps == "recomputed"
            ours = _Paths(model, runner, direction, metric, target, heads, ends, memory, recompute)
            found.append(ours.values(sending[pairs], reading[pairs], paths))
    values, own, source = (np.concatenate(part) for part in zip(*found, strict=True))
    coords: dict[str, tuple[int | str, ...]] = {"layer": target.layers}
    if senders == "z":
        coords["head"] = tuple(range(heads))
    name = f"{senders} to {', '.join(map(str, ends))}"
    name += "" if mlps == "recomputed" else ", MLPs frozen"
    return PatchResult.of(batch, "path", name, metric.name, mode, coords, values, (own, source))


def _chosen_positions(
    positions: Positions | None, shape: tuple[int, int], what: str
) -> Bool[Tensor, "pair pos"]:
    chosen = torch.zeros(shape, dtype=torch.bool)
    if positions is None:
        return ~chosen
    if isinstance(positions, Tensor):
        if tuple(positions.shape) != shape:
            raise ConfigError(
                f"{what}: the mask is {tuple(positions.shape)} and the patched prompts are "
                f"{shape}; give one entry for each pair and column."
            )
        return positions.bool()
    width = shape[1]
    for column in positions:
        if not -width <= column < width:
            raise ConfigError(
                f"{what}: the prompts have columns 0 to {width - 1}, not {column}; choose one of "
                "them."
            )
        chosen[:, column] = True
    return chosen


@dataclass
class _Paths:
    """Some of the pairs, with both runs kept."""

    model: TransformerBridge
    runner: BlockRunner
    direction: Direction
    metric: Metric
    target: Target
    heads: int
    receivers: tuple[Receiver, ...]
    memory: Memory
    recompute: bool

    def __post_init__(self) -> None:
        def parts(*components: str) -> dict:
            return {
                (component, layer): required_target(self.model, component, layer)
                for component in components
                for layer in range(len(self.runner.blocks))
            }

        ours, run = self.direction, self.runner.run
        self.own = run(ours.ids, ours.mask, keep=True, parts=parts("z", "attn_out", "mlp_out"))
        self.other = run(ours.source_ids, ours.source_mask, parts=parts(self.target.component))
        lasts = (self.own.last, self.other.last)
        self.score = Scorer(ours, self.metric, lasts, self.runner.logits)

    def values(
        self, sending: Bool[Tensor, "pair pos"], reading: Bool[Tensor, "pair pos"], task: Task
    ) -> tuple[
        Float[np.ndarray, "pair sender"], Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]
    ]:
        """Return every sender's number, and the metric of destination and source."""
        start, goal = self.score.ends
        values = np.repeat(start[:, None], len(self.target.layers) * self.heads, axis=1)
        tokens = self._tokens(sending & self.direction.fresh, reading)
        done = 0
        if len(tokens.pair):
            for sender, pair, numbers in self._sent(tokens):
                values[pair, sender] = numbers
                done += len(numbers)
                task.advance(len(numbers))
        task.advance(values.size - done)
        return values, start, goal

    def _tokens(
        self, sending: Bool[Tensor, "pair pos"], reading: Bool[Tensor, "pair pos"]
    ) -> Tokens:
        reading = reading.clone()
        if self.receivers[0].component == FINAL:
            reading[:, :-1] = False
        use = sending & reading
        if len({one.layer for one in self.receivers}) > 1 and bool(use.any()):
            # What a lower receiver passes on must not reach a higher one in the third run, so
            # that one reads what was recorded where nothing was sent to it, too.
            use = reading & self.direction.mask & (sending.cumsum(dim=1) > 0)
        pair, column = use.nonzero(as_tuple=True)
        return Tokens(pair, column, sending[pair, column])

    def _sent(self, tokens: Tokens) -> Iterator[Scored]:
        streams = Streams(
            self.model,
            self.runner,
            self.direction,
            self.own,
            self.other,
            tokens,
            recompute=self.recompute,
        )
        final = self.receivers[0].component == FINAL
        upto = len(self.runner.blocks) if final else max(one.layer for one in self.receivers)
        # Of one layer and kind the heads that receive, and what they read of every sender below the
        # layer, lowest first: their inputs side by side.
        heads: dict[tuple[int, str], list[int]] = {}
        inputs: dict[tuple[int, str], Float[Tensor, "sender token width"]] = {}
        for one in self.receivers:
            heads.setdefault((one.layer, one.component), []).append(one.head)
        names: list[tuple[int, int]] = []
        stream = torch.empty(0)
        senders = self.target.component
        for layer, stream, below in streams.by_block(senders, self.target.layers, upto):
            names = below
            for at, component in heads:
                if at == layer and len(stream):
                    own = heads[at, component]
                    inputs[at, component] = streams.read(component, at, stream, own)
        if not names:
            return
        layers = self.target.layers
        places = np.array([layers.index(at) * self.heads + head for at, head in names])
        if final:
            pair = tokens.pair.repeat(len(names))
            numbers = self.score(stream.flatten(0, 1), pair)
            yield np.repeat(places, len(tokens.pair)), pair.cpu().numpy(), numbers
            return
        pairs = tokens.pair.unique()
        sender = torch.arange(len(names), device=pairs.device).repeat_interleave(len(pairs))
        pair = pairs.repeat(len(names))
        each = self.memory.rows(int(tokens.column.min()))
        for some, rows in zip(sender.split(each), pair.split(each), strict=True):
            last = self._rerun(inputs, heads, tokens, some, rows)
            yield places[some.cpu().numpy()], rows.cpu().numpy(), self.score(last, rows)

    def _rerun(
        self,
        inputs: dict[tuple[int, str], Tensor],
        heads: dict[tuple[int, str], list[int]],
        tokens: Tokens,
        sender: Int[Tensor, " row"],
        pair: Int[Tensor, " row"],
    ) -> Float[Tensor, "row d_model"]:
        """Run rows of sender and pair a third time; return the last block's output at the answer.

        It starts at the lowest receiver's layer and first position.
        """
        lowest, first = min(layer for layer, _ in heads), int(tokens.column.min())
        number = torch.full(self.own.shape, -1, device=pair.device)
        number[tokens.pair, tokens.column] = torch.arange(len(tokens.pair), device=pair.device)
        number = number[pair, first:]

        def change_of(key: tuple[int, str]) -> SiteFunction:
            live = (number >= 0) & (sender < len(inputs[key]))[:, None]
            at = sender.clamp(max=len(inputs[key]) - 1)[:, None], number.clamp(min=0)
            new = inputs[key][at]
            columns = head_columns(heads[key], new.shape[-1] // len(heads[key]), new.device)

            def change(now: Tensor) -> Tensor:
                after = now.clone()
                after[..., columns] = torch.where(live[:, :, None], new, now[..., columns])
                return after

            return change

        hidden = self.own.residual[lowest][pair, first:]
        with hooked((required_target(self.model, k[1], k[0]), change_of(k)) for k in inputs):
            for layer in range(lowest, len(self.runner.blocks)):
                window = KVWindow(*self.own.past(layer, pair, first))
                hidden = self.runner.block(layer, hidden, self.own, pair, first, window)
        return hidden[:, -1]
