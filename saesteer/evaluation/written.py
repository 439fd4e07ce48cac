"""What a steered model writes: completions, judged and measured, against the unsteered ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.judge import AdmittedJudge, separation
from saesteer.evaluation.statistics import percentiles, resampled_means
from saesteer.evaluation.text_quality import (
    answer_similarity,
    completion_nll,
    composite_proxy,
    distinct_share,
    quality_reference,
    repeated_share,
    vader_compound,
)
from saesteer.models.placement import trim_memory
from saesteer.steering import generate
from saesteer.steering.engines import EngineSettings, make_engine

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering import SteeringVector, Unit

SIGNS = (1, -1, 0)
# How far the texts of both signs lie apart.
APART = ("judge_range", "low", "high", "auc", "auc_low", "auc_high")
MEASURES = ("sentiment", "nll", "rep4", "distinct2", "similarity")


@dataclass(frozen=True)
class WritingSettings:
    """How completions are sampled; see `saesteer.generate`."""

    n_samples: int = 4  # for each question
    max_new_tokens: int = 40
    # As users decode: at temperature 1 over the whole vocabulary a small model writes word salad,
    # and judges tell the signs apart no better.
    temperature: float = 0.7
    top_p: float = 0.9
    # Of the common random numbers: a question's n-th sample meets the same noise under every
    # vector, strength and system prompt.
    seed: int = 0
    chat: bool | None = None
    max_batch_rows: int = 64  # in bfloat16 it changes the sampled texts, so keep it
    # Left out of the text that tells settings apart where it is the usual one, transformers.
    engine: EngineSettings | None = None

    @property
    def key(self) -> str:
        """What completions depend on, as text."""
        told = repr(replace(self, engine=None)).replace(", engine=None", "")
        return told if self.engine is None else f"{told}, {self.engine.written_by}"


@dataclass(frozen=True)
class Completion:
    """One completion and what can be said of it.

    A measure that is None is missing: the completion is empty, or too short for it.
    """

    question: int  # its number, from 0
    sample: int  # which one of the question, from 0
    sign: int  # 1 and -1 for the positive and the negative way, 0 for the unsteered model
    text: str
    sentiment: float | None  # VADER's compound score, -1 to 1
    nll: float | None  # under the unsteered model, nats per token
    rep4: float | None  # share of repeated 4-grams
    distinct2: float | None  # share of distinct 2-grams
    similarity: float | None  # cosine of the embeddings of answer and question
    # The mean reading of the judges that figures rest on, in units of the distance between answers
    # of known sides; None where no judge is admitted.
    judge: float | None = None
    readings: dict[str, float | None] = field(default_factory=dict)  # each judge's own
    composite_proxy: float | None = None  # of quality; see `text_quality.composite_proxy`


class Writer:
    """Lets a model answer questions and measures the answers; the unsteered ones are made once.

    Embedded are questions and completions, by the shipped MiniLM if `embedder` is None.

    Raises:
        SteeringError: A setting is out of range or a question does not fit the model's context.
        DataError: The unsteered model wrote nothing to measure against.
    """

    def __init__(
        self,
        model: TransformerBridge,
        questions: Sequence[str],
        settings: WritingSettings | None = None,
        *,
        embedder: SentenceEmbedder | None = None,
        unsteered: Sequence[Completion] | None = None,
    ) -> None:
        self.questions = tuple(questions)
        self.embedder = embedder or SentenceEmbedder()
        self._model = model
        self._settings = settings or WritingSettings()
        self._engine = make_engine(self._settings.engine, model, self._settings.max_batch_rows)
        if unsteered is None:
            unsteered = self.write({0: {}})
        self.unsteered = tuple(unsteered)
        self.reference = quality_reference(
            _column(self.unsteered, "nll"), _column(self.unsteered, "similarity")
        )

    def write(self, by_sign: dict[int, dict[str, Any]]) -> tuple[Completion, ...]:
        """Write under each sign's own settings of `generate` and measure what is written."""
        found: list[tuple[int, int, str]] = []
        for sign, how in by_sign.items():
            found += [(place, sign, text) for place, text in enumerate(self._generate(**how))]
        return self._measured(found)

    def write_steered(
        self, vector: Any, strengths: dict[int, float], unit: Unit, repeat: int = 0
    ) -> tuple[Completion, ...]:
        """Write at each sign's strength, all in one batch: they share the noise.

        Every repeat has noise of its own and continues the samples' numbers.
        """
        seed = self._settings.seed + repeat
        texts = self._generate(
            vector=vector, strength=tuple(strengths.values()), unit=unit, seed=seed
        )
        n, signs = len(strengths), list(strengths)
        made = self._measured([(i // n, signs[i % n], text) for i, text in enumerate(texts)])
        before = repeat * self._settings.n_samples
        return tuple(replace(one, sample=before + one.sample) for one in made)

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        """Return embeddings; NaN, which carries "missing" through every measure, for blank ones."""
        embeddings = self.embedder.embed(texts)
        embeddings[[not text.strip() for text in texts]] = np.nan
        return embeddings

    def _generate(self, **how: Any) -> list[str]:
        settings = self._settings
        given: dict[str, Any] = {
            "max_new_tokens": settings.max_new_tokens,
            "chat": "auto" if settings.chat is None else settings.chat,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": settings.seed,
            "n_samples": settings.n_samples,
            "max_batch_rows": settings.max_batch_rows,
            "engine": self._engine,
        }
        result = generate(self._model, self.questions, **given | how)
        return [record.text for record in result.records]

    def _measured(self, found: Sequence[tuple[int, int, str]]) -> tuple[Completion, ...]:
        """Measure texts, each with its place (question, then sample) and its sign."""
        n_samples, texts = self._settings.n_samples, [text for *_, text in found]
        asked = [place // n_samples for place, *_ in found]
        questions = self.embedder.embed(self.questions)[asked]
        nll = completion_nll(
            self._model, [self.questions[q] for q in asked], texts, chat=self._settings.chat
        )
        # Keys and values that grew token by token leave pieces that the allocator keeps.
        trim_memory()
        similarity = answer_similarity(questions, self.embed(texts))
        sentiment = vader_compound(texts)
        return tuple(
            Completion(
                question=asked[i],
                sample=place % n_samples,
                sign=sign,
                text=text,
                sentiment=_known(sentiment[i]),
                nll=_known(nll[i]),
                rep4=_known(repeated_share(text)),
                distinct2=_known(distinct_share(text)),
                similarity=_known(similarity[i]),
            )
            for i, (place, sign, text) in enumerate(found)
        )


class WrittenEvaluation:
    """Writes under steering, and has every completion read by a persona's judges.

    Args:
        writer: What writes.
        judges: All of them are shown.
        headline: Names of the judges whose mean is `Completion.judge`; none, and nothing is
            claimed, if it is empty.
    """

    def __init__(
        self, writer: Writer, judges: Sequence[AdmittedJudge], headline: Collection[str]
    ) -> None:
        self._writer, self._judges, self.headline = writer, tuple(judges), frozenset(headline)
        self.unsteered: tuple[Completion, ...] = self._judged(writer.unsteered)

    def steered(
        self,
        vector: SteeringVector | Sequence[SteeringVector],
        plus: float | None,
        minus: float | None,
        unit: Unit = "norm",
        *,
        repeat: int = 0,
    ) -> tuple[Completion, ...]:
        """Return the unsteered records and what is written at a vector's matched strengths.

        None leaves a sign out, as where the KL target was not reached; `minus` is itself signed.
        A further `repeat` has other noise and further samples' numbers.
        """
        strengths = {s: x for s, x in ((1, plus), (-1, minus)) if x is not None}
        if not strengths:
            return self.unsteered
        return self.unsteered + self._judged(
            self._writer.write_steered(vector, strengths, unit, repeat)
        )

    def prompted(self, positive: str | None, negative: str | None) -> tuple[Completion, ...]:
        """Return the unsteered records and what is written under two persona system prompts.

        Raises:
            SteeringError: The model has no chat template.
            ModelError: Its chat template takes no system prompt.
        """
        given = {1: positive, -1: negative}
        how = {sign: {"system": system} for sign, system in given.items() if system is not None}
        return self.unsteered + (self._judged(self._writer.write(how)) if how else ())

    def masked(
        self, completions: Sequence[Completion], mask: Callable[[str], str]
    ) -> tuple[Completion, ...]:
        """Return the steered completions as a mask leaves them, read again."""
        return self._judged([replace(c, text=mask(c.text)) for c in completions if c.sign])

    def _judged(self, completions: Sequence[Completion]) -> tuple[Completion, ...]:
        texts = [completion.text for completion in completions]
        asked = [self._writer.questions[completion.question] for completion in completions]
        read = {judge.name: judge.read(texts, asked) for judge in self._judges}
        believed = [readings for name, readings in read.items() if name in self.headline]
        means = np.mean(believed, axis=0) if believed else np.full(len(texts), np.nan)
        composites = composite_proxy(
            _column(completions, "nll"),
            _column(completions, "rep4"),
            _column(completions, "similarity"),
            self._writer.reference,
        )
        return tuple(
            replace(
                completion,
                judge=_known(means[place]),
                readings={name: _known(readings[place]) for name, readings in read.items()},
                composite_proxy=_known(composites[place]),
            )
            for place, completion in enumerate(completions)
        )


def summarise(
    records: Sequence[Completion], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Average the records of each sign, with bootstrap intervals over questions.

    Questions are resampled with replacement and bring all their samples along: samples of one
    question are not independent, and resampling them again within it would count their spread
    twice (Davison and Hinkley 1997, section 3.8). Signs are resampled together, since they answer
    the same questions with the same noise. The questions are of one persona, so the intervals say
    nothing of others.

    Returns:
        `signs`, for each sign that was written (1, -1, 0) the number of completions, of empty ones
        among them, and the means of every measure, with the interval of `judge`; `judge_range`,
        the mean reading at the positive minus that at the negative sign, with its interval `low`
        to `high`; `auc`, the chance that a text of the positive sign reads higher, with
        `auc_low` and `auc_high`; `by_judge`, the same for each judge by itself, with its `judge`;
        `right_direction`, whether the positive sign reads above the unsteered completions and the
        negative one below; `composite`, the mean proxy of both signs. None is missing.
    """
    draws = {"resamples": resamples, "seed": seed}
    signs, told_apart = _read(records, lambda record: record.judge, **draws)
    rows: list[dict[str, Any]] = []
    for sign, judged in signs.items():
        chosen = [record for record in records if record.sign == sign]
        rows.append(
            {
                "sign": sign,
                "n": len(chosen),
                "n_empty": sum(not record.text.strip() for record in chosen),
                **judged,
                **{name: _mean(chosen, name) for name in MEASURES},
                "composite": _mean(chosen, "composite_proxy"),
            }
        )
    plus, minus, base = (signs.get(sign, {}).get("judge") for sign in SIGNS)
    right = None
    if plus is not None and minus is not None and base is not None:
        right = plus > base > minus
    names = dict.fromkeys(name for record in records for name in record.readings)
    return {
        "signs": rows,
        **told_apart,
        "by_judge": [
            {"judge": name, **_read(records, lambda r, n=name: r.readings.get(n), **draws)[1]}
            for name in names
        ],
        "right_direction": right,
        "composite": _mean([r for r in records if r.sign], "composite_proxy"),
    }


def by_question(records: Iterable[Mapping[str, Any]], judge: str | None = None) -> pd.Series:
    """Return each question's mean reading, positive minus negative, where there are both.

    Records are completions as JSON has them; readings are of one judge, or if None the mean of
    those that figures rest on.
    """
    import pandas as pd

    rows = [
        (
            record["question"],
            record["sign"],
            record["readings"].get(judge) if judge else record["judge"],
        )
        for record in records
    ]
    read = pd.DataFrame(rows, columns=["question", "sign", "judge"]).astype({"judge": float})
    means = read.pivot_table("judge", "question", "sign").reindex(columns=[1, -1])
    change: Any = means[1] - means[-1]
    return change.dropna()


def _read(
    records: Sequence[Completion],
    reading: Callable[[Completion], float | None],
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[int, dict[str, float | None]], dict[str, float | None]]:
    """Return for each sign the mean reading with its interval, and how far the signs lie apart."""
    known: dict[int, dict[int, list[float]]] = {}
    for record in records:
        by_question = known.setdefault(record.sign, {})
        by_question.setdefault(record.question, [])
        if (value := reading(record)) is not None:
            by_question[record.question].append(value)
    questions = sorted({question for by_question in known.values() for question in by_question})
    table = {
        sign: [np.array(known[sign].get(question, []), dtype=float) for question in questions]
        for sign in SIGNS
        if sign in known
    }
    # Of each resample the sums and the counts, sign by sign; those of NaN drew none that is known.
    rows = [[measure(row) for row in side] for side in table.values() for measure in (np.sum, len)]
    rng = np.random.default_rng(seed)
    drawn = resampled_means(np.array(rows), resamples, rng).T if rows else np.zeros((0, 0))
    with np.errstate(invalid="ignore"):
        spread = dict(zip(table, drawn[::2] / drawn[1::2], strict=True))
    signs: dict[int, dict[str, float | None]] = {}
    for sign, side in table.items():
        values = np.concatenate(side) if side else np.zeros(0)
        low, high = _interval(spread[sign])
        mean = float(values.mean()) if len(values) else None
        signs[sign] = {"judge": mean, "judge_low": low, "judge_high": high}
    apart: dict[str, float | None] = dict.fromkeys(APART)
    plus, minus = (signs.get(sign, {}).get("judge") for sign in (1, -1))
    if plus is not None and minus is not None:
        area = separation(table[1], table[-1], resamples=min(resamples, 2000), seed=seed)
        found = (plus - minus, *_interval(spread[1] - spread[-1]), *area)
        apart = dict(zip(APART, found, strict=True))
    return signs, apart


def _interval(values: Float[np.ndarray, " resample"]) -> tuple[float | None, float | None]:
    known = values[np.isfinite(values)]
    return percentiles(known) if len(known) else (None, None)


def _mean(completions: Sequence[Completion], name: str) -> float | None:
    values = _column(completions, name)
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _column(completions: Sequence[Completion], name: str) -> Float[np.ndarray, " completion"]:
    return np.array([getattr(completion, name) for completion in completions], dtype=np.float64)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
