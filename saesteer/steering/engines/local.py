"""The engine inside transformers: `generate` with hooks, all rows of a batch at their strengths."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.compat import cache_argument, selected_cache
from saesteer.models.forward import check_finite, greedy_settings, takes
from saesteer.models.loading import plain_model
from saesteer.models.prefix import shared_cache
from saesteer.models.sites import resolve_target
from saesteer.models.tokens import TokenBatch, TokenRow, input_device, pad_rows, padding_id
from saesteer.steering.apply import steer
from saesteer.steering.engines.base import (
    EVERYWHERE,
    Completion,
    Request,
    Requests,
    completed,
    end_ids,
    pad_id,
)
from saesteer.steering.positions import DEFAULT_POSITIONS
from saesteer.steering.vector import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LogitsProcessorList, PreTrainedModel

# Where what stands before a prompt's last token is as without steering.
_LATE = {DEFAULT_POSITIONS, "generated"}
# Of the likeliest tokens, in which the end of a nucleus is looked for first.
NUCLEUS_TOKENS = 512


class TransformersEngine:
    """Writes with Hugging Face's `generate`, batch after batch.

    Common random numbers: for one seed, requests with one key meet the same noise at every
    strength, so completions differ by the steering alone (see `sampling_processors`).

    Args:
        max_batch_rows: The most rows in a batch.
    """

    def __init__(self, model: TransformerBridge, max_batch_rows: int = 32) -> None:
        self._model, self._max_rows = model, max_batch_rows

    def generate(self, requests: Requests) -> list[Completion]:
        """Return one completion for each request; see `Engine`."""
        model, vectors = self._model, requests.vectors
        runner: Any = _runner(model, requests.pieces)
        tokenizer: Any = model.tokenizer
        ends = end_ids(runner, tokenizer)
        config = greedy_settings(
            requests.max_new_tokens, ends=sorted(ends) or None, pad=pad_id(tokenizer, ends)
        )
        written = requests.positions
        made: list[Completion] = []
        for first in range(0, len(requests.rows), self._max_rows):
            part = requests.rows[first : first + self._max_rows]
            own = [request.row for request in part]
            batch, prefix = _batch(runner, own, padding_id(model), share=_is_late(requests))
            width = batch.input_ids.shape[1]
            # The last prompt token is written to even if it is special: there KL is measured too.
            special = ~batch.span
            special[:, -1] = False
            how: dict[str, Any] = {
                "positions": "all" if written == EVERYWHERE else written,
                "prompt_length": width,
                "special_mask": None if written == EVERYWHERE else special,
            }
            streamer = None
            if requests.on_piece is not None:
                numbers = range(first, first + len(part))
                streamer = _PieceStreamer(tokenizer, ends, requests.on_piece, numbers)
            sampling = sampling_processors(
                [request.key for request in part],
                requests.temperature,
                requests.top_p,
                requests.seed,
            )
            with ExitStack() as steered, torch.no_grad():
                for chosen, amounts in _together(vectors, part):
                    steered.enter_context(steer(model, chosen, amounts, requests.unit, **how))
                output = runner.generate(
                    **batch.inputs,
                    **prefix,
                    generation_config=config,
                    logits_processor=_checked(runner.dtype, sampling),
                    streamer=streamer,
                )
            made += [completed(tokenizer, tokens, ends) for tokens in output[:, width:].tolist()]
        return made


def _is_late(requests: Requests) -> bool:
    """Whether nothing is written before a prompt's last token."""
    places = {requests.where(vector) for vector in requests.vectors}
    return not any(one.strength for one in requests.rows) or places <= _LATE


def _batch(
    runner: Any, rows: Sequence[TokenRow], pad: int, *, share: bool
) -> tuple[TokenBatch, dict[str, Any]]:
    """Return rows to generate from, with the cache of what they share as `generate` takes it.

    Padding stands behind what they share.
    """
    device = input_device(runner)
    limit = min(map(len, rows)) - 1 if share and _counts_by_position(runner) else 0
    shared, cache = shared_cache(runner, rows, limit)
    if cache is None:
        return pad_rows(rows, pad, device), {}
    parts = [
        pad_rows([row.part(*ends) for row in rows], pad, device)
        for ends in ((0, shared), (shared, None))
    ]
    both = TokenBatch(
        torch.cat([part.input_ids for part in parts], dim=1),
        torch.cat([part.attention_mask for part in parts], dim=1),
        torch.cat([part.span for part in parts], dim=1),
    )
    return both, cache_argument(runner, selected_cache(cache, [0] * len(rows)))


def _counts_by_position(runner: Any) -> bool:
    """Whether attention goes by the positions that it is told, and not by columns.

    Padding between two tokens would put them further apart: in a window, a chunk or an ALiBi bias
    that counts columns.
    """
    config = runner.config.get_text_config()
    bounds = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return not any(bounds) and takes(runner, "position_ids")


def _together(
    vectors: Sequence[SteeringVector], rows: Sequence[Request]
) -> list[tuple[Sequence[SteeringVector], list[float]]]:
    """Return vectors that are added together, with the strength of each row."""
    if all(row.vector is None for row in rows):
        return [(vectors, [row.strength for row in rows])] if vectors else []
    return [
        ([vector], [row.strength if row.vector in (None, number) else 0.0 for row in rows])
        for number, vector in enumerate(vectors)
    ]


def _runner(model: TransformerBridge, vectors: Sequence[SteeringVector]) -> PreTrainedModel:
    # Sites inside a block are hooked on the bridge, so there its own model has to generate.
    plain = plain_model(model)
    targets = [resolve_target(model, vector.site).model for vector in vectors]
    return next((t for t in targets if t is not plain), plain)  # type: ignore[return-value]


class _PieceStreamer:
    """Hands on the text of every row as it grows, by the methods that transformers calls."""

    def __init__(
        self,
        tokenizer: Any,
        ends: set[int],
        on_piece: Callable[[int, str], None],
        numbers: Sequence[int],
    ) -> None:
        self._tokenizer, self._ends, self._on_piece = tokenizer, ends, on_piece
        self._numbers = numbers
        self._ids: list[list[int]] = [[] for _ in numbers]
        self._sent = [""] * len(numbers)
        self._ended = [False] * len(numbers)
        self._prompted = False

    def put(self, value: Tensor) -> None:
        if not self._prompted:
            # The first call brings the prompts.
            self._prompted = True
            return
        for row, token in enumerate(value.reshape(-1).tolist()):
            self._ended[row] = self._ended[row] or token in self._ends
            if not self._ended[row]:
                self._ids[row].append(token)
                self._send(row)

    def end(self) -> None:
        for row in range(len(self._ids)):
            self._send(row, whole=True)

    def _send(self, row: int, whole: bool = False) -> None:
        text, sent = self._decoded(row), self._sent[row]
        # A character of which bytes are missing decodes to U+FFFD until they come, and a tokenizer
        # that tidies spaces may shorten what went before: both wait.
        if text.startswith(sent) and len(text) > len(sent) and (whole or text[-1] != "\ufffd"):
            self._sent[row] = text
            self._on_piece(self._numbers[row], text[len(sent) :])

    def _decoded(self, row: int) -> str:
        return self._tokenizer.decode(self._ids[row], skip_special_tokens=True)


def _checked(dtype: torch.dtype, processors: LogitsProcessorList) -> LogitsProcessorList:
    """Return processors behind a check of the model's own scores, which are in `dtype`."""

    def check(_ids: Tensor, scores: Float[Tensor, "batch vocab"]) -> Tensor:
        # Minus infinity bars a token; anything else would end as an empty or a made-up text, and
        # a row's largest score shows it.
        check_finite(scores.amax(dim=-1).to(dtype), "the scores of the next token")
        return scores

    processors.insert(0, check)
    return processors


def sampling_processors(
    keys: Sequence[tuple[int, int]], temperature: float, top_p: float, seed: int
) -> LogitsProcessorList:
    """Return logits processors that turn greedy choice into sampling with common random numbers.

    Gumbel-max: argmax(log p + g) with g standard Gumbel noise is a sample of p (Gumbel 1954). The
    noise is a function of the seed, the row's key (its prompt's and its sample's number) and the
    step alone, so rows with one key, such as one prompt's sample at several strengths, meet the
    same noise wherever they stand in a batch, on whatever device. Use with `do_sample=False`.
    Temperature 0 gives no processors, that is the likeliest token.
    """
    from transformers import LogitsProcessorList, TemperatureLogitsWarper

    processors: list[Any] = []
    if temperature > 0.0:
        processors.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1.0:
            processors.append(_nucleus(top_p))
        processors.append(_CommonNoise(keys, seed))
    return LogitsProcessorList(processors)


def _nucleus(top_p: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return transformers' `TopPLogitsWarper`, which sorts the vocabulary only where it has to.

    The few likeliest tokens are mostly enough to find where the nucleus ends, in a tenth of the
    time; of tokens that tie there all are kept.
    """
    from transformers import TopPLogitsWarper

    exact: Any = TopPLogitsWarper(top_p)

    def warp(ids: Tensor, scores: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        top = scores.topk(min(NUCLEUS_TOKENS, scores.shape[-1])).values
        mass = (top - scores.logsumexp(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
        last = (mass < top_p).sum(dim=-1, keepdim=True).clamp_max(mass.shape[-1] - 1)
        kept = scores.masked_fill(scores < top.gather(1, last), -float("inf"))
        # The nucleus is larger, or its end so near that rounding decides on a token.
        unsure = (mass[:, -1] <= top_p) | ((mass - top_p).abs().amin(dim=-1) < 1e-6)
        if unsure.any():
            kept[unsure] = exact(ids, scores[unsure])
        return kept

    return warp


class _CommonNoise:
    """Adds Gumbel noise to the scores, one stream of it for each key."""

    def __init__(self, keys: Sequence[tuple[int, int]], seed: int) -> None:
        unique = list(dict.fromkeys(keys))
        self._row = torch.tensor([unique.index(key) for key in keys])
        self._streams = [torch.Generator().manual_seed(key_seed(seed, *key)) for key in unique]

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        # Drawn on the CPU so that every device samples the same text; -log of an exponential
        # variable is a Gumbel one.
        width = scores.shape[-1]
        noise = torch.stack(
            [-torch.empty(width).exponential_(generator=s).log() for s in self._streams]
        )
        return scores + noise.to(scores.device)[self._row.to(scores.device)]


def key_seed(*parts: int) -> int:
    """Return a seed for numbers that tell one stream of noise from others."""
    # Neighbouring seeds of one generator are correlated in few bits; a hash spreads them.
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
