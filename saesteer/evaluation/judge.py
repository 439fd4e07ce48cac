"""Judges: on which side of a persona is a text? Each is admitted by answers whose side is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from saesteer.data.near_duplicates import near_duplicate_groups
from saesteer.data.pairs import PairSet
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.statistics import percentiles, resample_counts
from saesteer.utils.errors import DataError

FOLDS = 5
FEWEST_PAIRS = 10
STRENGTHS = tuple(float(c) for c in np.logspace(-5, 1, 13))
# AUC on answers to questions that the judge never saw: above the first a judge is admitted, above
# the second with a warning, below it claims nothing.
ADMITTED = 0.85
DOUBTFUL = 0.75

Readings = Float[np.ndarray, " text"]


class Separation(NamedTuple):
    """How well readings tell two sides apart, with an interval over questions."""

    auc: float  # the chance that a positive text reads higher than a negative one
    low: float
    high: float


def separation(
    positive: Sequence[Readings],
    negative: Sequence[Readings],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Separation:
    """Return the area under the ROC curve with a percentile interval over questions.

    Args:
        positive: For each question the readings of its texts of the positive side.
        negative: For each question, in the same order, those of the negative side.
        resamples: How often questions are drawn with replacement; they bring all their texts.

    Raises:
        DataError: A side has no text.
    """
    sides = [[row[np.isfinite(row)] for row in side] for side in (positive, negative)]
    counts = [np.array([len(row) for row in side]) for side in sides]
    if not all(count.sum() for count in counts):
        raise DataError("no text of one side can be read; two sides are needed to tell them apart.")
    above = np.array(
        [[_times_above(first, second) for second in sides[1]] for first in sides[0]], dtype=float
    )

    def area(weights: Float[np.ndarray, "draw question"]) -> Float[np.ndarray, " draw"]:
        wins = np.einsum("dp,pq,dq->d", weights, above, weights, optimize=True)
        return wins / np.prod([weights @ count for count in counts], axis=0)

    n = len(above)
    drawn = resample_counts(np.arange(n), resamples, np.random.default_rng(seed))
    with np.errstate(invalid="ignore"):
        spread = area(drawn.astype(float))
    low, high = percentiles(spread[np.isfinite(spread)])
    return Separation(float(area(np.ones((1, n)))[0]), low, high)


def _times_above(first: Readings, second: Readings) -> float:
    difference = first[:, None] - second[None]
    return float((difference > 0).sum() + (difference == 0).sum() / 2)


class Judge(ABC):
    """Reads on which side of a persona a text is; higher is more like the positive side.

    Attributes:
        name: What figures call it; different for each judge of a persona.
        kind: What sort of judge it is. Judges of one kind share their flaws.
    """

    name: str
    kind: ClassVar[str]

    @abstractmethod
    def read(self, texts: Sequence[str], questions: Sequence[str]) -> Readings:
        """Return each text's reading, which answers a question; NaN for a blank text."""

    def read_unseen(self, answers: PairSet) -> tuple[Readings, Readings]:
        """Return readings of answers of either side, by a judge that was not trained on them."""
        questions = [pair.prompt or "" for pair in answers]
        return self.read(answers.positives, questions), self.read(answers.negatives, questions)


class AdmittedJudge:
    """A judge with the evidence for and against it, and with a unit.

    Readings are in units of the distance between the answers of known sides: 1 is as far as the
    means of answers written as the persona and of answers written as its opposite lie apart, and 0
    is half way between them.

    Args:
        judge: What reads.
        answers: Texts of known sides: answers, each with its question as `prompt`.
        proven: Whether they are such answers. By statements, which are all that there is of a
            persona that nobody has written answers for, no judge is admitted.

    Raises:
        DataError: There are too few answers, or the judge reads both sides alike.
    """

    def __init__(self, judge: Judge, answers: PairSet, *, proven: bool = True) -> None:
        if len(answers) < FEWEST_PAIRS:
            raise DataError(
                f"answers {answers.name!r} are {len(answers)} a side, and at least {FEWEST_PAIRS} "
                "are needed to admit a judge; write more of them."
            )
        self.judge, self.n_answers, self.proven = judge, len(answers), proven
        positive, negative = judge.read_unseen(answers)
        by_question: dict[str, list[int]] = {}
        for place, pair in enumerate(answers):
            by_question.setdefault(pair.prompt or pair.id, []).append(place)
        self.separation = separation(
            [positive[rows] for rows in by_question.values()],
            [negative[rows] for rows in by_question.values()],
        )
        ends = np.nanmean(positive), np.nanmean(negative)
        self._middle, self._distance = float(sum(ends) / 2), float(ends[0] - ends[1])

    @property
    def name(self) -> str:
        """What figures call the judge."""
        return self.judge.name

    @property
    def verdict(self) -> str:
        """Whether figures of it may be claimed: "admitted", "doubtful" or "not admitted"."""
        if not self.proven:
            return "not admitted"
        auc = self.separation.auc
        if auc >= ADMITTED:
            return "admitted"
        return "doubtful" if auc >= DOUBTFUL else "not admitted"

    def read(self, texts: Sequence[str], questions: Sequence[str]) -> Readings:
        """Return each text's reading; NaN for a blank text."""
        # Sides that are read alike give no unit; such a judge is not admitted either.
        unit = self._distance if self._distance > 0 else np.nan
        return (self.judge.read(texts, questions) - self._middle) / unit

    def summary(self) -> dict[str, Any]:
        """Return the row of `judges` in a comparison's metrics."""
        return {
            "judge": self.name,
            "kind": self.judge.kind,
            **self.separation._asdict(),
            "n": self.n_answers,
            "on": "answers" if self.proven else "statements",
            "verdict": self.verdict,
        }


class EmbeddingJudge(Judge):
    """Logistic regression on sentence embeddings, trained on statements and answers together.

    Embeddings are standardised; C is chosen by 5-fold cross-validated log-loss, with the two sides
    of a pair, near-duplicate statements, and answers to one question always in one fold. The AUC
    is of other folds than those that chose C.

    Args:
        statements: Pairs that no other step sees.
        answers: Answers of known sides; without them the judge is one of statements alone.
        embedder: The shipped MiniLM if None.

    Attributes:
        c: The inverse regularisation chosen by cross-validation.
        auc: Of cross-validation, on the answers where there are some, else on the statements.

    Raises:
        DataError: There are too few pairs, or all say the same.
        ModelError: The embedding model is not installed.
    """

    kind = "embedding"

    def __init__(
        self,
        statements: PairSet,
        answers: PairSet | None = None,
        *,
        embedder: SentenceEmbedder | None = None,
        seed: int = 0,
    ) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(statements) < FEWEST_PAIRS:
            raise DataError(
                f"judge {statements.name!r} has {len(statements)} pairs to train on, and needs at "
                f"least {FEWEST_PAIRS}; give it more pairs."
            )
        self.embedder = embedder or SentenceEmbedder()
        self.name = self.embedder.name
        self._tested_on = statements if answers is None else answers
        pairs = [*statements, *(answers or ())]
        texts = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
        known = self.embedder.embed(texts).astype(np.float64)
        labels = np.arange(len(texts)) < len(pairs)
        alike = [None] * len(statements) + [pair.prompt for pair in answers or ()]
        groups = _pair_groups(texts, alike)
        n_folds = min(FOLDS, len(np.unique(groups)))
        if n_folds < 2:
            raise DataError(
                "the judge's training pairs are all near-duplicates of one another; give pairs "
                "that are worded differently."
            )
        choosing, scoring = (
            GroupKFold(n_folds, shuffle=True, random_state=seed + i) for i in (0, 1)
        )
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            {"logisticregression__C": STRENGTHS},
            scoring="neg_log_loss",
            cv=choosing,
        ).fit(known, labels, groups=groups)
        self._fitted: Any = search.best_estimator_
        self.c: float = self._fitted[-1].C
        unseen: Any = cross_val_predict(
            self._fitted, known, labels, groups=groups, cv=scoring, method="decision_function"
        )
        tested = np.tile(np.arange(len(pairs)) >= (len(statements) if answers else 0), 2)
        self.auc = float(roc_auc_score(labels[tested], unseen[tested]))
        self._unseen = unseen[tested & labels], unseen[tested & ~labels]

    def read(self, texts: Sequence[str], questions: Sequence[str] = ()) -> Readings:
        """Return the log-odds that each text is of the positive side; NaN for a blank text."""
        if not texts:
            return np.zeros(0)
        # Blank ones too: the texts are then those that the writer embeds.
        readings = self._fitted.decision_function(self.embedder.embed(texts).astype(np.float64))
        readings[[not text.strip() for text in texts]] = np.nan
        return readings

    def read_unseen(self, answers: PairSet) -> tuple[Readings, Readings]:
        """Return the readings of texts in the folds that did not train on them."""
        return self._unseen if answers is self._tested_on else super().read_unseen(answers)


def _pair_groups(texts: Sequence[str], alike: Sequence[str | None]) -> Int[np.ndarray, " text"]:
    """Number pairs that are connected, by a near-duplicate text or one question, alike.

    The texts are all positive sides, then all negative ones in the same order; `alike` has for each
    pair the question that it answers.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(texts) // 2
    said = near_duplicate_groups(texts)
    numbers: dict[str, int] = {}
    asked = np.array(
        [numbers.setdefault(q if q else f"\0{i}", len(numbers)) for i, q in enumerate(alike)]
    )
    pair = np.concatenate([np.tile(np.arange(n), 2), np.arange(n)])
    joint = np.concatenate([n + said, n + int(said.max()) + 1 + asked])
    size = int(joint.max()) + 1
    edges = coo_matrix((np.ones(len(pair)), (pair, joint)), shape=(size, size))
    return np.tile(connected_components(edges, directed=False)[1][:n], 2)
