"""Path patching: what one sender tells chosen receivers, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.data.checks import shorten
from saesteer.models.hooks import SiteFunction, hooked
from saesteer.models.loading import plain_model
from saesteer.models.tokens import input_device
from saesteer.patching.batch import Direction, Mode, PairBatch, direction_of
from saesteer.patching.engine.attention import KVWindow
from saesteer.patching.engine.blocks import BlockRunner, Run, block_runner
from saesteer.patching.engine.memory import Memory
from saesteer.patching.metrics import Metric, scores
from saesteer.patching.result import PatchResult
from saesteer.patching.streams import Streams, Tokens, head_columns, known_target
from saesteer.patching.target import Target, heads_of
from saesteer.utils.errors import ConfigError, ModelError
from saesteer.utils.progress import Progress, Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Mlps = Literal["recomputed", "frozen"]
Senders = Literal["z", "mlp_out"]
FINAL = "final"
_HEAD = re.compile(r"(\d+)\.(\d+)\.([qkv])")

# Rows whose logits are held at once.
ROWS_AT_ONCE = 256

Positions = Sequence[int] | Tensor
# Senders' places in the flattened result, their pairs and their numbers.
Scored = tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"], Float[np.ndarray, " row"]]


@dataclass(frozen=True)
class Receiver:
    """One end of a path.

    Attributes:
        component: "final" for the residual stream behind the last block, or a head's "q", "k" or
            "v". Where several query heads share keys and values, heads of "k" and "v" are counted
            among those.
        layer: The head's layer; -1 for "final".
        head: The head's number; -1 for "final".
    """

    component: str
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        if self.component == FINAL:
            return FINAL
        return f"{self.layer}.{self.head}.{self.component}"

    @classmethod
    def parse(cls, text: str | Receiver) -> Receiver:
        """Return the receiver named by "final" or by text such as "9.6.q".

        Raises:
            ConfigError: The text has neither form.
        """
        if isinstance(text, Receiver):
            return text
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
    model: TransformerBridge, receivers: str | Receiver | Sequence[str | Receiver]
) -> tuple[Receiver, ...]:
    """Return the receivers asked for."""
    given = (receivers,) if isinstance(receivers, str | Receiver) else tuple(receivers)
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
    receivers: str | Receiver | Sequence[str | Receiver],
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
        mode: "denoising" sends from the clean prompt into the corrupted run, "noising" the other
            way.
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
            ours = _Paths(
                model,
                runner,
                direction_of(batch, mode, pairs, device),
                metric,
                target,
                heads,
                ends,
                memory,
                recompute=mlps == "recomputed",
            )
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


class _Paths:
    """Some of the pairs, with both runs kept."""

    def __init__(
        self,
        model: TransformerBridge,
        runner: BlockRunner,
        direction: Direction,
        metric: Metric,
        target: Target,
        heads: int,
        receivers: tuple[Receiver, ...],
        memory: Memory,
        *,
        recompute: bool,
    ) -> None:
        self._model, self._runner, self._direction = model, runner, direction
        self._metric, self._receivers, self._memory = metric, receivers, memory
        self._senders, self._layers, self._heads = target.component, target.layers, heads
        self._recompute = recompute

        def parts(*components: str) -> dict:
            return {
                (component, layer): known_target(model, component, layer)
                for component in components
                for layer in range(len(runner.blocks))
            }

        self._own = runner.run(
            direction.ids, direction.mask, keep=True, parts=parts("z", "attn_out", "mlp_out")
        )
        self._other = runner.run(
            direction.source_ids, direction.source_mask, parts=parts(target.component)
        )
        clean = self._other if direction.mode == "denoising" else self._own
        self._clean = None if metric.answers_only else runner.logits(clean.last)

    def values(
        self, sending: Bool[Tensor, "pair pos"], reading: Bool[Tensor, "pair pos"], task: Task
    ) -> tuple[
        Float[np.ndarray, "pair sender"], Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]
    ]:
        """Return every sender's number, and the metric of destination and source."""
        everyone = torch.arange(len(sending), device=sending.device)
        start, goal = (self._scored(run.last, everyone) for run in (self._own, self._other))
        values = np.repeat(start[:, None], len(self._layers) * self._heads, axis=1)
        tokens = self._tokens(sending & self._direction.fresh, reading)
        done = 0
        if len(tokens):
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
        if self._receivers[0].component == FINAL:
            reading[:, :-1] = False
        use = sending & reading
        if len({one.layer for one in self._receivers}) > 1 and bool(use.any()):
            # What a lower receiver passes on must not reach a higher one in the third run, so
            # that one reads what was recorded where nothing was sent to it, too.
            use = reading & self._direction.mask & (sending.cumsum(dim=1) > 0)
        pair, column = use.nonzero(as_tuple=True)
        return Tokens(pair, column, sending[pair, column])

    def _scored(
        self, last: Float[Tensor, "row d_model"], pair: Int[Tensor, " row"]
    ) -> Float[np.ndarray, " row"]:
        parts = []
        for some, rows in zip(last.split(ROWS_AT_ONCE), pair.split(ROWS_AT_ONCE), strict=True):
            answers = self._direction.answers[rows]
            logits = self._runner.logits(some, answers if self._metric.answers_only else None)
            clean = None if self._clean is None else self._clean[rows]
            parts.append(scores(self._metric, logits, answers, clean).double().cpu().numpy())
        return np.concatenate(parts)

    def _sent(self, tokens: Tokens) -> Iterator[Scored]:
        streams = Streams(
            self._model,
            self._runner,
            self._direction,
            self._own,
            self._other,
            tokens,
            recompute=self._recompute,
        )
        final = self._receivers[0].component == FINAL
        upto = len(self._runner.blocks) if final else max(one.layer for one in self._receivers)
        # What the receivers of one layer and kind read of every sender: the heads' inputs side by
        # side, for every sender below the layer, lowest first.
        inputs: dict[tuple[int, str], Float[Tensor, "sender token width"]] = {}
        heads: dict[tuple[int, str], list[int]] = {}
        for one in self._receivers:
            heads.setdefault((one.layer, one.component), []).append(one.head)
        names: list[tuple[int, int]] = []
        stream = torch.empty(0)
        for layer, stream, below in streams.by_block(self._senders, self._layers, upto):
            names = below
            for (at, component), own in heads.items():
                if at == layer:
                    inputs[at, component] = streams.read(component, at, stream, own)
        if not names:
            return
        places = np.array([self._layers.index(at) * self._heads + head for at, head in names])
        if final:
            pair = tokens.pair.repeat(len(names))
            numbers = self._scored(stream.flatten(0, 1), pair)
            yield np.repeat(places, len(tokens)), pair.cpu().numpy(), numbers
            return
        rerun = _Rerun(self._model, self._runner, self._own, inputs, heads, tokens)
        pairs = tokens.pair.unique()
        sender = torch.arange(len(names), device=pairs.device).repeat_interleave(len(pairs))
        pair = pairs.repeat(len(names))
        each = self._memory.rows(rerun.first)
        for some, rows in zip(sender.split(each), pair.split(each), strict=True):
            numbers = self._scored(rerun.last(some, rows), rows)
            yield places[some.cpu().numpy()], rows.cpu().numpy(), numbers


class _Rerun:
    """The third run, from the lowest receiver's layer and first position on."""

    def __init__(
        self,
        model: TransformerBridge,
        runner: BlockRunner,
        run: Run,
        inputs: dict[tuple[int, str], Tensor],
        heads: dict[tuple[int, str], list[int]],
        tokens: Tokens,
    ) -> None:
        self._runner, self._run, self._heads = runner, run, heads
        self._inputs = {key: values for key, values in inputs.items() if len(values)}
        self._targets = {key: known_target(model, key[1], key[0]) for key in self._inputs}
        self._start = min(layer for layer, _ in inputs)
        self.first = int(tokens.column.min())
        shape = run.residual[0].shape[:2]
        self._number = torch.full(shape, -1, device=tokens.pair.device)
        self._number[tokens.pair, tokens.column] = torch.arange(
            len(tokens), device=tokens.pair.device
        )

    def last(
        self, sender: Int[Tensor, " row"], pair: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """Return the last block's output at the answer's position, for rows of sender and pair."""
        hidden = self._run.residual[self._start][pair, self.first :]
        edits = [(self._targets[key], self._change(key, sender, pair)) for key in self._inputs]
        with hooked(edits):
            for layer in range(self._start, len(self._runner.blocks)):
                window = KVWindow(*self._run.past(layer, pair, self.first))
                hidden = self._runner.block(layer, hidden, self._run, pair, self.first, window)
        return hidden[:, -1]

    def _change(self, key: tuple[int, str], sender: Tensor, pair: Tensor) -> SiteFunction:
        inputs, heads = self._inputs[key], self._heads[key]
        number = self._number[pair, self.first :]
        live = (number >= 0) & (sender < len(inputs))[:, None]
        new = inputs[sender.clamp(max=len(inputs) - 1)[:, None], number.clamp(min=0)]
        columns = head_columns(heads, new.shape[-1] // len(heads), new.device)

        def change(now: Tensor) -> Tensor:
            after = now.clone()
            after[..., columns] = torch.where(live[:, :, None], new, now[..., columns])
            return after

        return change
