"""What a steered model writes: completions, judged and measured, against the unsteered ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.judge import BehaviourJudge
from saesteer.evaluation.sentiment import vader_compound
from saesteer.evaluation.text_quality import (
    QualityReference,
    answer_similarity,
    completion_nll,
    composite_proxy,
    distinct_share,
    quality_reference,
    repeated_share,
)
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering import SteeringVector, Unit


@dataclass(frozen=True)
class WritingSettings:
    """How completions are sampled.

    Attributes:
        n_samples: Completions for each question.
        max_new_tokens: The most tokens of each.
        temperature: Softmax temperature.
        top_p: Nucleus sampling's probability; 1 for none.
        seed: Seeds the common random numbers: a question's n-th sample meets the same noise
            under every vector, strength and system prompt.
        chat: Whether questions go through the chat template; where there is one if None.
        max_batch_rows: Rows per batch; in bfloat16 it changes the sampled texts, so keep it.
    """

    n_samples: int = 4
    max_new_tokens: int = 40
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    chat: bool | None = None
    max_batch_rows: int = 64


@dataclass(frozen=True)
class Completion:
    """One completion and what can be said of it without knowing the persona.

    A measure that is None is missing: the completion is empty, or too short for it.

    Attributes:
        question: The question's number, from 0.
        sample: Which sample of it, from 0.
        sign: 1 and -1 for the positive and the negative way, 0 for the unsteered model.
        text: What was written.
        sentiment: VADER's compound score, -1 to 1.
        nll: Negative log-likelihood under the unsteered model, nats per token.
        rep4: Share of repeated 4-grams.
        distinct2: Share of distinct 2-grams.
        similarity: Cosine of the embeddings of answer and question.
    """

    question: int
    sample: int
    sign: int
    text: str
    sentiment: float | None
    nll: float | None
    rep4: float | None
    distinct2: float | None
    similarity: float | None


@dataclass(frozen=True)
class WrittenRecord(Completion):
    """A completion with the readings that need a persona's judge and the unsteered completions.

    Attributes:
        judge: The behaviour judge's logit.
        composite_proxy: A proxy of quality in [0, 1]; see `text_quality.COMPOSITE_NOTE`.
    """

    judge: float | None
    composite_proxy: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class BaseCompletions:
    """The unsteered model's completions: made once, used for every persona and method.

    Attributes:
        questions: The questions.
        settings: How they were sampled; steered completions are sampled alike.
        completions: The unsteered completions, by question, then sample.
        reference: Their means, which the composite proxy is relative to.
        question_embeddings: The questions' embeddings.
        embeddings: The completions' embeddings, NaN for a blank one.
        embedder: What made both.
    """

    questions: tuple[str, ...]
    settings: WritingSettings
    completions: tuple[Completion, ...]
    reference: QualityReference
    question_embeddings: Float[np.ndarray, "question dim"]
    embeddings: Float[np.ndarray, "completion dim"]
    embedder: SentenceEmbedder

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; embeddings are made again from the texts."""
        return {
            "questions": list(self.questions),
            "settings": asdict(self.settings),
            "embedding": self.embedder.name,
            "completions": [asdict(completion) for completion in self.completions],
        }

    @classmethod
    def from_dict(
        cls, record: dict[str, Any], *, embedder: SentenceEmbedder | None = None
    ) -> BaseCompletions:
        """Return what `as_dict` gave away.

        Raises:
            DataError: The record is damaged, or was made with other embeddings.
        """
        embedder = embedder or SentenceEmbedder()
        try:
            questions = tuple(record["questions"])
            settings = WritingSettings(**record["settings"])
            completions = tuple(Completion(**fields) for fields in record["completions"])
            made_with = record["embedding"]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"the saved unsteered completions are damaged ({type(error).__name__}: {error}); "
                "remove them, and they are written again."
            ) from error
        if made_with != embedder.name:
            raise DataError(
                f"the saved unsteered completions were measured with {made_with} and not "
                f"{embedder.name}; remove them, and they are written again."
            )
        return _base(questions, settings, completions, embedder, None)


def write_base(
    model: TransformerBridge,
    questions: Sequence[str],
    settings: WritingSettings | None = None,
    *,
    embedder: SentenceEmbedder | None = None,
) -> BaseCompletions:
    """Generate and measure the unsteered model's completions.

    Args:
        model: A model from `load_model`.
        questions: Neutral questions.
        settings: How to sample; the defaults if None.
        embedder: What embeds questions and completions; the shipped MiniLM if None.

    Raises:
        SteeringError: A setting is out of range or a question does not fit the model's context.
        DataError: The unsteered model wrote nothing to measure against.
    """
    embedder = embedder or SentenceEmbedder()
    chosen = settings or WritingSettings()
    asked = tuple(questions)
    texts = _generate(model, asked, chosen)
    known = embedder.embed(asked)
    rows = [(row, 0) for row in range(len(texts))]
    completions, embeddings = _measured(model, asked, known, chosen, rows, texts, embedder)
    return _base(asked, chosen, completions, embedder, (known, embeddings))


class WrittenEvaluation:
    """Writes under steering, and judges and measures every completion.

    Args:
        model: A model from `load_model`.
        base: The unsteered completions, from `write_base`; questions and settings are theirs.
        judge: The persona's judge, trained on pairs that no other step sees.
    """

    def __init__(
        self, model: TransformerBridge, base: BaseCompletions, judge: BehaviourJudge
    ) -> None:
        if judge.embedding != base.embedder.name:
            raise DataError(
                f"judge {judge.name!r} reads embeddings of {judge.embedding} and the completions "
                f"are embedded with {base.embedder.name}; use one embedder for both."
            )
        self._model = model
        self._base = base
        self._judge = judge
        self.unsteered: tuple[WrittenRecord, ...] = self._records(base.completions, base.embeddings)

    def steered(
        self,
        vector: SteeringVector | Sequence[SteeringVector],
        plus: float | None,
        minus: float | None,
        unit: Unit = "norm",
    ) -> tuple[WrittenRecord, ...]:
        """Write at a vector's matched strengths.

        Args:
            vector: What to steer with.
            plus: The strength that steers to the positive side; None leaves it out, as where
                the KL target was not reached.
            minus: The strength that steers to the negative side, itself signed.
            unit: The strengths' unit.

        Returns:
            The unsteered records and those of each sign given.
        """
        strengths = {s: x for s, x in ((1, plus), (-1, minus)) if x is not None}
        if not strengths:
            return self.unsteered
        asked, settings = self._base.questions, self._base.settings
        # Both signs in one batch: they share the noise of the common random numbers.
        texts = _generate(
            self._model,
            asked,
            settings,
            vector=vector,
            strengths=tuple(strengths.values()),
            unit=unit,
        )
        n = len(strengths)
        rows = [(i // n, list(strengths)[i % n]) for i in range(len(texts))]
        return self.unsteered + self._written(rows, texts)

    def prompted(self, positive: str | None, negative: str | None) -> tuple[WrittenRecord, ...]:
        """Write under two persona system prompts instead of a vector.

        Args:
            positive: The system prompt of the positive side; None leaves it out.
            negative: That of the negative side.

        Returns:
            The unsteered records and those of each sign given.

        Raises:
            SteeringError: The model has no chat template.
            ModelError: Its chat template takes no system prompt.
        """
        rows: list[tuple[int, int]] = []
        texts: list[str] = []
        for sign, system in ((1, positive), (-1, negative)):
            if system is not None:
                new = _generate(
                    self._model, self._base.questions, self._base.settings, system=system
                )
                rows += [(place, sign) for place in range(len(new))]
                texts += new
        return self.unsteered + (self._written(rows, texts) if texts else ())

    def _written(
        self, rows: Sequence[tuple[int, int]], texts: Sequence[str]
    ) -> tuple[WrittenRecord, ...]:
        base = self._base
        return self._records(
            *_measured(
                self._model,
                base.questions,
                base.question_embeddings,
                base.settings,
                rows,
                texts,
                base.embedder,
            )
        )

    def _records(
        self,
        completions: Sequence[Completion],
        embeddings: Float[np.ndarray, "completion dim"],
    ) -> tuple[WrittenRecord, ...]:
        logits = self._judge.logit_of(embeddings)
        composites = composite_proxy(
            _column(completions, "nll"),
            _column(completions, "rep4"),
            _column(completions, "similarity"),
            self._base.reference,
        )
        return tuple(
            WrittenRecord(**asdict(c), judge=_known(logit), composite_proxy=_known(composite))
            for c, logit, composite in zip(completions, logits, composites, strict=True)
        )


def _generate(
    model: TransformerBridge, questions: Sequence[str], settings: WritingSettings, **how: Any
) -> list[str]:
    from saesteer.steering import generate

    result = generate(
        model,
        questions,
        max_new_tokens=settings.max_new_tokens,
        chat="auto" if settings.chat is None else settings.chat,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        n_samples=settings.n_samples,
        max_batch_rows=settings.max_batch_rows,
        **how,
    )
    return [record.text for record in result.records]


def _measured(
    model: TransformerBridge,
    questions: Sequence[str],
    question_embeddings: Float[np.ndarray, "question dim"],
    settings: WritingSettings,
    rows: Sequence[tuple[int, int]],
    texts: Sequence[str],
    embedder: SentenceEmbedder,
) -> tuple[tuple[Completion, ...], Float[np.ndarray, "completion dim"]]:
    """Measure texts; `rows` says of each its place (question, then sample) and its sign."""
    asked = [place // settings.n_samples for place, _ in rows]
    embeddings = _embed_or_missing(embedder, texts)
    nll = completion_nll(model, [questions[q] for q in asked], texts, chat=settings.chat)
    similarity = answer_similarity(question_embeddings[asked], embeddings)
    sentiment = vader_compound(texts)
    completions = tuple(
        Completion(
            question=asked[i],
            sample=place % settings.n_samples,
            sign=sign,
            text=texts[i],
            sentiment=_known(sentiment[i]),
            nll=_known(nll[i]),
            rep4=_known(repeated_share(texts[i])),
            distinct2=_known(distinct_share(texts[i])),
            similarity=_known(similarity[i]),
        )
        for i, (place, sign) in enumerate(rows)
    )
    return completions, embeddings


def _base(
    questions: tuple[str, ...],
    settings: WritingSettings,
    completions: tuple[Completion, ...],
    embedder: SentenceEmbedder,
    embedded: tuple[np.ndarray, np.ndarray] | None,
) -> BaseCompletions:
    reference = quality_reference(_column(completions, "nll"), _column(completions, "similarity"))
    if embedded is None:
        texts = [completion.text for completion in completions]
        embedded = embedder.embed(questions), _embed_or_missing(embedder, texts)
    return BaseCompletions(questions, settings, completions, reference, *embedded, embedder)


def _embed_or_missing(
    embedder: SentenceEmbedder, texts: Sequence[str]
) -> Float[np.ndarray, "text dim"]:
    # Blank text has an embedding that means nothing; NaN carries "missing" through every measure.
    embeddings = embedder.embed(texts)
    embeddings[[not text.strip() for text in texts]] = np.nan
    return embeddings


def _column(completions: Sequence[Completion], name: str) -> Float[np.ndarray, " completion"]:
    values = [getattr(completion, name) for completion in completions]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
