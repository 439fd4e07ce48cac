"""Written completions in numbers: per sign, and how far the judge's reading moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from saesteer.evaluation.written import WrittenRecord

SIGNS = (1, -1, 0)


@dataclass(frozen=True)
class SignSummary:
    """The completions of one sign; a mean that is None had nothing to average.

    Attributes:
        sign: 1 and -1 for the positive and the negative way, 0 for the unsteered model.
        n: Completions.
        n_empty: Those among them that are empty, and so in no mean.
        judge: Mean logit of the behaviour judge.
        judge_low: Lower end of its 95% interval over questions.
        judge_high: Upper end.
        sentiment: Mean VADER compound score.
        nll: Mean negative log-likelihood under the unsteered model, nats per token.
        rep4: Mean share of repeated 4-grams.
        distinct2: Mean share of distinct 2-grams.
        similarity: Mean cosine of answer and question.
        composite: Mean composite PROXY of quality; see `text_quality.COMPOSITE_NOTE`.
    """

    sign: int
    n: int
    n_empty: int
    judge: float | None
    judge_low: float | None
    judge_high: float | None
    sentiment: float | None
    nll: float | None
    rep4: float | None
    distinct2: float | None
    similarity: float | None
    composite: float | None


@dataclass(frozen=True)
class WrittenSummary:
    """What steering both ways did to what is written.

    Attributes:
        signs: One summary per sign that was written: 1, -1, 0.
        judge_range: Mean judge logit at the positive minus that at the negative sign; None where
            one is missing.
        low: Lower end of its 95% interval: questions resampled, both signs and all samples of a
            question together. The questions are of one persona, so it says nothing of others.
        high: Upper end.
        right_direction: Whether the positive sign reads above the unsteered completions and the
            negative one below; None where one of the three is missing.
        composite: Mean composite PROXY over the completions of both signs.
    """

    signs: tuple[SignSummary, ...]
    judge_range: float | None
    low: float | None
    high: float | None
    right_direction: bool | None
    composite: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)

    def of(self, sign: int) -> SignSummary | None:
        """Return the summary of a sign; None where nothing was written at it."""
        return next((s for s in self.signs if s.sign == sign), None)


def summarise(
    records: Sequence[WrittenRecord], *, resamples: int = 10_000, seed: int = 0
) -> WrittenSummary:
    """Average the records of each sign, with bootstrap intervals over questions.

    Questions are resampled with replacement and bring all their samples along: samples of one
    question are not independent, and resampling them again within it would count their spread
    twice (Davison and Hinkley 1997, section 3.8). Signs are resampled together, since they answer
    the same questions with the same noise.

    Args:
        records: Records of any signs, from `WrittenEvaluation`.
        resamples: Bootstrap resamples.
        seed: Seeds the bootstrap.
    """
    written = [sign for sign in SIGNS if any(r.sign == sign for r in records)]
    questions = sorted({r.question for r in records})
    draws = _draws(len(questions), resamples, seed)
    means: dict[int, float | None] = {}
    spread: dict[int, np.ndarray] = {}
    signs = []
    for sign in written:
        chosen = [r for r in records if r.sign == sign]
        means[sign] = _mean([r.judge for r in chosen])
        spread[sign] = _resampled(chosen, questions, draws)
        signs.append(_sign_summary(sign, chosen, means[sign], spread[sign]))
    plus, minus, base = (means.get(sign) for sign in SIGNS)
    judge_range = low = high = right = None
    if plus is not None and minus is not None:
        judge_range = plus - minus
        low, high = _interval(spread[1] - spread[-1])
        right = None if base is None else plus > base > minus
    steered = [r.composite_proxy for r in records if r.sign]
    return WrittenSummary(tuple(signs), judge_range, low, high, right, _mean(steered))


def _sign_summary(
    sign: int, records: Sequence[WrittenRecord], judge: float | None, spread: np.ndarray
) -> SignSummary:
    low, high = _interval(spread)
    measures = ("sentiment", "nll", "rep4", "distinct2", "similarity")
    return SignSummary(
        sign=sign,
        n=len(records),
        n_empty=sum(not r.text.strip() for r in records),
        judge=judge,
        judge_low=low,
        judge_high=high,
        composite=_mean([r.composite_proxy for r in records]),
        **{name: _mean([getattr(r, name) for r in records]) for name in measures},
    )


def _draws(n: int, resamples: int, seed: int) -> Float[np.ndarray, "resample question"]:
    """Return how often each question is drawn."""
    if n == 0:
        return np.zeros((0, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _resampled(
    records: Sequence[WrittenRecord],
    questions: Sequence[int],
    draws: Float[np.ndarray, "resample question"],
) -> Float[np.ndarray, " resample"]:
    """Return the mean judge logit of each resample; NaN where it drew none that is known."""
    place = {question: i for i, question in enumerate(questions)}
    total, count = np.zeros(len(questions)), np.zeros(len(questions))
    for record in records:
        if record.judge is not None:
            total[place[record.question]] += record.judge
            count[place[record.question]] += 1
    known = draws @ count
    return np.where(known > 0, draws @ total / np.where(known > 0, known, 1.0), np.nan)


def _interval(values: Float[np.ndarray, " resample"]) -> tuple[float | None, float | None]:
    known = values[np.isfinite(values)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
