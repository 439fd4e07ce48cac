"""Generating text at several strengths at once, as rows of one batch with common random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from saesteer.models.loading import context_length
from saesteer.models.tokens import TokenRow, chat_prompt, encode_texts, has_chat_template
from saesteer.steering.engines.base import Engine, Request, Requests
from saesteer.steering.engines.local import TransformersEngine
from saesteer.steering.strength import Unit, check_strengths, check_unit, to_raw
from saesteer.steering.vector import SteeringVector
from saesteer.utils.errors import SteeringError

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

COLDEST = 1e-6


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

    def __repr__(self) -> str:
        return self.table.to_string(max_colwidth=60)

    def _repr_html_(self) -> str:
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):
            return self.table.to_html(index=False)


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
    engine: Engine | None = None,
    on_token: Callable[[str], None] | None = None,
    on_piece: Callable[[int, str], None] | None = None,
) -> GenerationResult:
    """Complete every prompt at every strength, all of them rows of one batch.

    Sampling uses common random numbers: for one seed, a prompt's n-th sample meets the same noise
    at every strength, so completions differ by the steering alone; other engines than transformers
    draw as they do.

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
        positions: Where to write; the vector's own positions if None. Beside those that a vector
            may have there is "everywhere", BOS and the template's special tokens too, as in a baked
            model.
        max_batch_rows: The most rows in a batch; more rows are run batch after batch.
        side_by_side: Steer each completion with one vector instead of all of them: the first at
            the first strength, the second at the second; for the engine transformers.
        engine: What writes; transformers, with this model, if None (see `saesteer.steering.engines`
            for others).
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
    if side_by_side and engine is not None:
        raise SteeringError("only transformers steers side by side; leave engine out.")
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
    if on_token is not None:
        told = on_token
        on_piece = lambda _, piece: told(piece)  # noqa: E731
    written = (engine or TransformersEngine(model, max_batch_rows)).generate(
        Requests(
            [
                Request(rows[job.prompt], job.strength, (job.prompt, job.sample), job.vector)
                for job in jobs
            ],
            vectors=vectors,
            unit=unit,
            positions=positions,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_piece=on_piece,
        )
    )
    return GenerationResult(
        tuple(
            GenerationRecord(texts[job.prompt], job.strength, unit, job.sample, *completion)
            for job, completion in zip(jobs, written, strict=True)
        )
    )


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
    if 0.0 < temperature < COLDEST:
        # Scores divided by less are no numbers any more.
        raise SteeringError(f"temperature is {temperature!r}; give 0 for the likeliest token.")
    if not isinstance(top_p, Real) or not 0.0 < top_p <= 1.0:
        raise SteeringError(f"top_p is {top_p!r}; give a number above 0 and at most 1.")
    if counts["n_samples"] > 1 and temperature == 0.0:
        raise SteeringError(
            f"n_samples is {counts['n_samples']} at temperature 0, where all samples are equal; "
            "give a temperature such as 0.7."
        )
