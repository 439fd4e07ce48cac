"""Generating text at several strengths at once, as rows of one batch with common random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.compat import contiguous_head
from saesteer.models.forward import check_finite, greedy_settings
from saesteer.models.loading import context_length, plain_model
from saesteer.models.sites import resolve_target
from saesteer.models.tokens import (
    TokenRow,
    chat_prompt,
    encode_texts,
    has_chat_template,
    input_device,
    pad_rows,
    padding_id,
)
from saesteer.steering.apply import steer
from saesteer.steering.strength import Unit, check_strengths, check_unit, to_raw
from saesteer.steering.vector import SteeringVector
from saesteer.utils.errors import SteeringError

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LogitsProcessorList, PreTrainedModel


@dataclass(frozen=True)
class GenerationRecord:
    """One completion."""

    # As it was given, without the chat template.
    prompt: str
    strength: float
    unit: str
    # Which sample of this prompt and strength, from 0.
    sample: int
    # Without special tokens.
    text: str
    # The end-of-text token left out.
    n_tokens: int
    # Whether the model ended it, rather than `max_new_tokens`.
    finished: bool


@dataclass(frozen=True)
class GenerationResult:
    """Completions, ordered by prompt, then sample, then strength as given."""

    records: tuple[GenerationRecord, ...]

    def __len__(self) -> int:
        return len(self.records)

    def texts(self, strength: float) -> tuple[str, ...]:
        """Return the completions at one strength."""
        return tuple(r.text for r in self.records if r.strength == strength)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one dict per completion, for JSON."""
        return [asdict(record) for record in self.records]

    @property
    def table(self) -> pd.DataFrame:
        """One row per completion: prompt, strength, text."""
        import pandas as pd

        rows = [(record.prompt, record.strength, record.text) for record in self.records]
        return pd.DataFrame(rows, columns=["prompt", "strength", "text"])

    def _repr_html_(self) -> str:
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):
            return self.table.to_html(index=False)


# Of the likeliest tokens, in which the end of a nucleus is looked for first.
NUCLEUS_TOKENS = 512


class _Job(NamedTuple):
    prompt: int
    sample: int
    strength: float
    # Which vector it is steered with; all of them if None.
    vector: int | None = None


def generate(
    model: TransformerBridge,
    prompts: str | Sequence[str],
    vector: SteeringVector | Sequence[SteeringVector] | None = None,
    strength: float | Sequence[float] = 0.0,
    unit: Unit = "norm",
    *,
    max_new_tokens: int = 64,
    chat: bool | Literal["auto"] = "auto",
    system: str | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    n_samples: int = 1,
    positions: str | None = None,
    max_batch_rows: int = 32,
    side_by_side: bool = False,
    on_token: Callable[[str], None] | None = None,
    on_piece: Callable[[int, str], None] | None = None,
) -> GenerationResult:
    """Complete every prompt at every strength, all of them rows of one batch.

    Sampling uses common random numbers: for one seed, a prompt's n-th sample meets the same noise
    at every strength, so completions differ by the steering alone (see `sampling_processors`).

    Args:
        prompts: One prompt or several.
        vector: What to steer with; None for the plain model.
        strength: One strength or several to generate at.
        unit: "norm", "raw" or "max_act".
        max_new_tokens: The most tokens to generate for each row.
        chat: Whether prompts go through the chat template; "auto" if there is one.
        system: A system prompt; needs the chat template.
        temperature: 0 for the likeliest token, else the softmax temperature.
        top_p: Nucleus sampling: the smallest set of tokens with this probability (arXiv
            1904.09751).
        seed: Seeds the sampling.
        n_samples: Completions for each prompt and strength; more than 1 needs a temperature.
        positions: Where to write; the vector's own positions if None.
        max_batch_rows: The most rows in a batch; more rows are run batch after batch.
        side_by_side: Steer each completion with one vector instead of all of them: the first at
            the first strength, the second at the second.
        on_token: Called with each new piece of text; for one row alone.
        on_piece: Called with a completion's number, in the result's order, and each new piece of
            its text. What it raises ends the generation.

    Raises:
        SteeringError: A setting is out of range, a prompt is empty or does not fit the model's
            context with `max_new_tokens`, or a strength has no vector; before generating.

    Example:
        >>> result = ss.generate(model, "How are you?", vector, [0.0, 0.2], max_new_tokens=4)
        >>> len(result)
        2
    """
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    vectors = (vector,) if isinstance(vector, SteeringVector) else tuple(vector or ())
    strengths = check_strengths(strength)
    counts = {
        "max_new_tokens": max_new_tokens,
        "n_samples": n_samples,
        "max_batch_rows": max_batch_rows,
    }
    _check_settings(texts, counts, temperature, top_p)
    if not vectors and any(strengths):
        raise SteeringError("strengths were given but no vector; give a vector, or strength 0.")
    check_unit(unit)
    for one in vectors:
        for number in strengths:
            to_raw(number, unit, one)
    if side_by_side and len(vectors) != len(strengths):
        raise SteeringError(
            f"side by side each vector has a strength, and there are {len(vectors)} vectors and "
            f"{len(strengths)} strengths; give one for each."
        )
    rows = _encode(model, texts, chat, system, max_new_tokens)
    jobs = [
        _Job(p, s, x, number if side_by_side else None)
        for p in range(len(texts))
        for s in range(n_samples)
        for number, x in enumerate(strengths)
    ]
    if on_token is not None and len(jobs) > 1:
        raise SteeringError(
            f"streaming shows one completion and {len(jobs)} were asked for; give one prompt, one "
            "strength and one sample, or leave on_token out."
        )
    runner: Any = _runner(model, vectors)
    tokenizer: Any = model.tokenizer
    ends = _end_ids(runner, tokenizer)
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else min(ends, default=0)
    config = greedy_settings(max_new_tokens, ends=sorted(ends) or None, pad=pad)
    if on_token is not None:
        told = on_token
        on_piece = lambda _, piece: told(piece)  # noqa: E731
    records: list[GenerationRecord] = []
    for first in range(0, len(jobs), max_batch_rows):
        part = jobs[first : first + max_batch_rows]
        own = [rows[job.prompt] for job in part]
        batch = pad_rows(own, padding_id(model), input_device(runner))
        width = batch.input_ids.shape[1]
        keys = [(job.prompt, job.sample) for job in part]
        # The last prompt token is written to even if it is special, as where the KL is measured.
        special = ~batch.span
        special[:, -1] = False
        how = {"positions": positions, "prompt_length": width, "special_mask": special}
        streamer = None
        if on_piece is not None:
            streamer = _PieceStreamer(tokenizer, ends, on_piece, range(first, first + len(part)))
        with ExitStack() as steered, contiguous_head(runner), torch.no_grad():
            for chosen, amounts in _steered(vectors, part, side_by_side):
                steered.enter_context(steer(model, chosen, amounts, unit, **how))
            output = runner.generate(
                **batch.inputs,
                generation_config=config,
                logits_processor=_checked(
                    runner.dtype, sampling_processors(keys, temperature, top_p, seed)
                ),
                streamer=streamer,
            )
        for job, tokens in zip(part, output[:, width:].tolist(), strict=True):
            # Cut at the first end token, not at padding, which may be a token that is generated.
            stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
            text = tokenizer.decode(tokens[:stop], skip_special_tokens=True)
            prompt, finished = texts[job.prompt], stop < len(tokens)
            records.append(
                GenerationRecord(prompt, job.strength, unit, job.sample, text, stop, finished)
            )
    return GenerationResult(tuple(records))


def _steered(
    vectors: Sequence[SteeringVector], jobs: Sequence[_Job], side_by_side: bool
) -> list[tuple[Sequence[SteeringVector], list[float]]]:
    """Return vectors that are added together, with the strength of each row."""
    if not side_by_side:
        return [(vectors, [job.strength for job in jobs])] if vectors else []
    return [
        ([vector], [job.strength if job.vector == number else 0.0 for job in jobs])
        for number, vector in enumerate(vectors)
    ]


def _encode(
    model: TransformerBridge,
    texts: Sequence[str],
    chat: bool | Literal["auto"],
    system: str | None,
    max_new_tokens: int,
) -> list[TokenRow]:
    tokenizer = model.tokenizer
    use_chat = has_chat_template(tokenizer) if chat == "auto" else chat
    if system is not None and not use_chat:
        raise SteeringError(
            "a system prompt needs the chat template; leave system out, or use a chat model."
        )
    if use_chat:
        texts = [chat_prompt(tokenizer, text, system) for text in texts]
    rows = encode_texts(tokenizer, texts)
    context = context_length(model)
    for number, row in enumerate(rows, start=1):
        if not row.ids:
            raise SteeringError(f"prompt {number} is empty; give it at least one word.")
        if context is not None and len(row) + max_new_tokens > context:
            raise SteeringError(
                f"prompt {number} has {len(row)} tokens, which with max_new_tokens "
                f"{max_new_tokens} is more than the model's context of {context}; shorten it"
                + ("." if len(row) >= context else " or generate fewer tokens.")
            )
    return rows


def _check_settings(
    texts: Sequence[str], counts: Mapping[str, int], temperature: float, top_p: float
) -> None:
    if not texts:
        raise SteeringError("there are no prompts; give at least one.")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise SteeringError(f"prompt {number} is empty; give it at least one word.")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SteeringError(f"{name} is {value!r}; give a whole number of at least 1.")
    if not isinstance(temperature, Real) or not 0.0 <= temperature < float("inf"):
        raise SteeringError(f"temperature is {temperature!r}; give 0 or more, such as 0.7.")
    if not isinstance(top_p, Real) or not 0.0 < top_p <= 1.0:
        raise SteeringError(f"top_p is {top_p!r}; give a number above 0 and at most 1.")
    if counts["n_samples"] > 1 and temperature == 0.0:
        raise SteeringError(
            f"n_samples is {counts['n_samples']} at temperature 0, where all samples are equal; "
            "give a temperature such as 0.7."
        )


def _runner(model: TransformerBridge, vectors: Sequence[SteeringVector]) -> PreTrainedModel:
    # Sites inside a block are hooked on the bridge, so there its own model has to generate.
    plain = plain_model(model)
    targets = [resolve_target(model, vector.site).model for vector in vectors]
    return next((t for t in targets if t is not plain), plain)  # type: ignore[return-value]


def _end_ids(runner: Any, tokenizer: Any) -> set[int]:
    config = runner.generation_config
    found: set[int] = set()
    for ids in (config.eos_token_id, tokenizer.eos_token_id):
        if ids is not None:
            found.update([int(i) for i in ([ids] if isinstance(ids, int) else ids)])
    return found


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
        # Minus infinity bars a token; anything else would end as an empty or a made-up text.
        check_finite(scores.clamp_min(-1e4).to(dtype), "the scores of the next token")
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

    exact = TopPLogitsWarper(top_p)

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
        self._streams = [torch.Generator().manual_seed(_key_seed(seed, *key)) for key in unique]

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


def _key_seed(*parts: int) -> int:
    # Neighbouring seeds of one generator are correlated in few bits; a hash spreads them.
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
