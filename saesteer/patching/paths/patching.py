"""Path patching: what one sender tells chosen receivers, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.loading import plain_model
from saesteer.models.tokens import input_device
from saesteer.patching.attribution.runs import chosen_layers
from saesteer.patching.components import heads_of
from saesteer.patching.engine.attention import windows_allowed
from saesteer.patching.engine.check import windows_stand
from saesteer.patching.engine.limits import Budget
from saesteer.patching.engine.sides import Scorer, Sides, sides_of
from saesteer.patching.engine.steps import Steps
from saesteer.patching.metrics import Metric
from saesteer.patching.paths.receivers import (
    FINAL,
    Positions,
    Receiver,
    chosen_positions,
    chosen_receivers,
)
from saesteer.patching.paths.rerun import Rerun, Told, grouped
from saesteer.patching.paths.streams import Streams, Tokens, record
from saesteer.patching.prompts.batch import PairBatch
from saesteer.patching.result import Mode, PatchResult, check_mode
from saesteer.utils.errors import ConfigError, DataError, ModelError
from saesteer.utils.progress import Progress, Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Mlps = Literal["recomputed", "frozen"]
Senders = Literal["z", "mlp_out"]
MLPS, SENDERS = get_args(Mlps), get_args(Senders)

# Rows whose logits are held at once.
ROWS_AT_ONCE = 256

# Senders' places in the flattened result, their pairs and their numbers.
Scored = tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"], Float[np.ndarray, " row"]]


def path_patching(
    model: TransformerBridge,
    batch: PairBatch,
    senders: Senders,
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
        sender_positions: Columns of the patched prompts (or a mask [pair, pos]) where senders
            change; all that have a counterpart if None.
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

    Example:
        >>> found = path_patching(model, batch, "z", "9.6.q", metric)  # doctest: +SKIP
        >>> found.mean().shape  # doctest: +SKIP
        (12, 12)
    """
    if not len(batch):
        raise DataError("there is no pair of prompts to patch; give at least one.")
    check_mode(mode)
    for what, value, known in (("senders", senders, SENDERS), ("mlps", mlps, MLPS)):
        if value not in known:
            raise ConfigError(f"{what}: {value!r} is neither {known[0]!r} nor {known[1]!r}.")
    shape = (len(batch), batch.width)
    sending = chosen_positions(sender_positions, shape, "sender_positions")
    reading = chosen_positions(receiver_positions, shape, "receiver_positions")
    asked = _Asked(
        senders=senders,
        receivers=chosen_receivers(model, receivers),
        layers=chosen_layers(model, layers),
        heads=heads_of(model, "z") if senders == "z" else 1,
        metric=metric,
        mode=mode,
        recompute=mlps == "recomputed",
        budget=Budget.of(model, batch.width, memory_gb),
    )
    each = _pairs_at_once(model, batch.width, asked, memory_gb)
    plain = plain_model(model)
    device = input_device(plain)
    with torch.inference_mode():
        stands = windows_stand(model, sides_of(batch, mode, slice(None), device))
    if not stands:
        raise ModelError(
            f"path patching calls a model's blocks one by one, and {model.cfg.model_name} cannot "
            "be run like that; use activation patching of its heads."
        )
    found = []
    with (
        (progress or Progress()).task("path patching", len(batch) * asked.count, "paths") as task,
        torch.inference_mode(),
        windows_allowed(plain),
    ):
        steps = Steps(model)
        for first in range(0, len(batch), each):
            pairs = slice(first, first + each)
            sides = sides_of(batch, mode, pairs, device)
            answers = torch.stack([batch.right[pairs], batch.wrong[pairs]], dim=1)
            ours = _Pairs(model, steps, sides, answers.to(device), asked)
            found.append(ours.values(sending[pairs].to(device), reading[pairs].to(device), task))
    values, start, goal = (np.concatenate(part) for part in zip(*found, strict=True))
    return _result(batch, asked, values, start, goal)


@dataclass(frozen=True)
class _Asked:
    """What is asked for, checked."""

    senders: Senders
    receivers: tuple[Receiver, ...]
    layers: tuple[int, ...]
    heads: int
    metric: Metric
    mode: Mode
    recompute: bool
    budget: Budget

    @property
    def final(self) -> bool:
        return self.receivers[0].component == FINAL

    @property
    def count(self) -> int:
        return len(self.layers) * self.heads

    def place(self, layer: int, head: int) -> int:
        """A sender's place in the flattened result."""
        return self.layers.index(layer) * self.heads + head

    @property
    def name(self) -> str:
        to = ", ".join(map(str, self.receivers))
        return f"{self.senders} to {to}{'' if self.recompute else ', MLPs frozen'}"


class _Pairs:
    """Some of the pairs, with both runs kept."""

    def __init__(
        self,
        model: TransformerBridge,
        steps: Steps,
        sides: Sides,
        answers: Int[Tensor, "pair 2"],
        asked: _Asked,
    ) -> None:
        self._model, self._steps, self._sides, self._asked = model, steps, sides, asked
        self._own = record(
            model, steps, sides.ids, sides.mask, ("z", "attn_out", "mlp_out"), keep=True
        )
        self._other = record(
            model, steps, sides.source_ids, sides.source_mask, (asked.senders,), keep=False
        )
        clean = None
        if not asked.metric.answers_only:
            ends = self._other if asked.mode == "denoising" else self._own
            clean = steps.logits(ends.run.last, None)
        self._scorer = Scorer(asked.metric, answers, clean)

    def values(
        self, sending: Bool[Tensor, "pair pos"], reading: Bool[Tensor, "pair pos"], task: Task
    ) -> tuple[
        Float[np.ndarray, "pair sender"], Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]
    ]:
        """Return every sender's number, and the metric of destination and source."""
        everyone = torch.arange(len(sending), device=sending.device)
        start, goal = (self._scored(side.run.last, everyone) for side in (self._own, self._other))
        values = np.repeat(start[:, None], self._asked.count, axis=1)
        tokens = self._tokens(sending & self._sides.fresh, reading)
        done = 0
        if len(tokens):
            run = self._to_final if self._asked.final else self._to_heads
            for sender, pair, numbers in run(tokens):
                values[pair, sender] = numbers
                done += len(numbers)
                task.advance(len(numbers))
        task.advance(values.size - done)
        return values, start, goal

    def _tokens(
        self, sending: Bool[Tensor, "pair pos"], reading: Bool[Tensor, "pair pos"]
    ) -> Tokens:
        reading = reading.clone()
        if self._asked.final:
            reading[:, :-1] = False
        use = sending & reading
        if len({one.layer for one in self._asked.receivers}) > 1 and bool(use.any()):
            # What a lower receiver passes on must not reach a higher one in the third run, so
            # that one reads what it was told where nothing was sent to it, too.
            use = reading & self._sides.mask & (sending.cumsum(dim=1) > 0)
        pair, column = use.nonzero(as_tuple=True)
        return Tokens(pair, column, sending[pair, column])

    def _scored(
        self, last: Float[Tensor, "row d_model"], pair: Int[Tensor, " row"]
    ) -> Float[np.ndarray, " row"]:
        parts = []
        for some, rows in zip(last.split(ROWS_AT_ONCE), pair.split(ROWS_AT_ONCE), strict=True):
            logits = self._steps.logits(some, self._scorer.wanted(rows))
            parts.append(self._scorer.score(logits, rows))
        return np.concatenate(parts)

    def _streams(self, tokens: Tokens) -> Streams:
        return Streams(
            self._model,
            self._steps,
            self._sides,
            self._own,
            self._other,
            tokens,
            recompute=self._asked.recompute,
        )

    def _to_final(self, tokens: Tokens) -> Iterator[Scored]:
        streams, asked = self._streams(tokens), self._asked
        *_, (_, stream, names) = streams.climb(asked.senders, asked.layers, len(self._steps.blocks))
        pair = tokens.pair.repeat(len(names))
        numbers = self._scored(stream.flatten(0, 1), pair)
        sender = np.repeat([asked.place(*name) for name in names], len(tokens))
        yield sender, pair.cpu().numpy(), numbers

    def _to_heads(self, tokens: Tokens) -> Iterator[Scored]:
        streams, asked = self._streams(tokens), self._asked
        receivers = grouped(asked.receivers)
        told: list[Told] = []
        names: list[tuple[int, int]] = []
        upto = max(layer for layer, _ in receivers)
        for layer, stream, below in streams.climb(asked.senders, asked.layers, upto):
            names = below
            told += [
                Told(at, component, heads, streams.read(component, at, stream, heads))
                for (at, component), heads in receivers.items()
                if at == layer
            ]
        if not names:
            return
        rerun = Rerun(self._model, self._steps, self._own.run, told, tokens)
        pairs = tokens.pair.unique()
        sender = torch.arange(len(names), device=pairs.device).repeat_interleave(len(pairs))
        pair = pairs.repeat(len(names))
        places = np.array([asked.place(*name) for name in names])
        each = self._asked.budget.rows(rerun.first)
        for some, rows in zip(sender.split(each), pair.split(each), strict=True):
            numbers = self._scored(rerun.last(some, rows), rows)
            yield places[some.cpu().numpy()], rows.cpu().numpy(), numbers


def _pairs_at_once(model: TransformerBridge, width: int, asked: _Asked, memory_gb: float) -> int:
    """Return for how many pairs the senders' residual streams fit, in about four copies."""
    tokens = 1 if asked.final else width
    one = 4 * 4 * asked.count * tokens * int(model.cfg.d_model)
    return max(1, int(memory_gb * 2**30 / one))


def _result(
    batch: PairBatch, asked: _Asked, values: np.ndarray, start: np.ndarray, goal: np.ndarray
) -> PatchResult:
    coords: dict[str, tuple[int | str, ...]] = {"layer": asked.layers}
    shape = [len(batch), len(asked.layers)]
    if asked.senders == "z":
        coords["head"] = tuple(range(asked.heads))
        shape.append(asked.heads)
    clean, corrupted = (goal, start) if asked.mode == "denoising" else (start, goal)
    return PatchResult(
        method="path",
        component=asked.name,
        mode=asked.mode,
        metric=asked.metric.name,
        dims=tuple(coords),
        coords=coords,
        values=values.reshape(shape),
        clean=clean,
        corrupted=corrupted,
        pairs=tuple(pair.name or f"pair {i}" for i, pair in enumerate(batch.pairs, start=1)),
    )
