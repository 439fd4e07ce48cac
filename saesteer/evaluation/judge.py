"""A behaviour judge: does a text sound like the positive or the negative side?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saesteer.data.checks import plain_form
from saesteer.data.near_duplicates import near_duplicate_groups
from saesteer.data.pairs import PairSet
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.utils.errors import DataError
from saesteer.utils.files import write_atomic

FORMAT = "saesteer behaviour judge"
VERSION = 1
FOLDS = 5
FEWEST_PAIRS = 10
STRENGTHS = tuple(float(c) for c in np.logspace(-5, 1, 13))


@dataclass(frozen=True, eq=False)
class BehaviourJudge:
    """Logistic regression on sentence embeddings; the logit is its reading.

    Attributes:
        name: The persona.
        embedding: What made the embeddings; see `SentenceEmbedder.name`.
        weights: The regression's weights on raw embeddings, the standardisation folded in.
        intercept: Its intercept.
        c: The inverse regularisation chosen by cross-validation.
        auc: Area under the ROC curve on the held-out judge pairs' statements: the chance that a
            positive statement reads higher than a negative one.
        n_train: Training pairs.
        n_test: Held-out judge pairs.
        train_digest: `PairSet.digest` of the training pairs, to show later which they were.
        test_digest: The same of the held-out ones.
        embedder: What embeds the texts to judge; not saved.
    """

    name: str
    embedding: str
    weights: Float[np.ndarray, " dim"]
    intercept: float
    c: float
    auc: float
    n_train: int
    n_test: int
    train_digest: str
    test_digest: str
    embedder: SentenceEmbedder

    def logit(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the log-odds that each text is of the positive side; NaN for a blank text."""
        rows = [row for row, text in enumerate(texts) if text.strip()]
        logits = np.full(len(texts), np.nan)
        if rows:
            logits[rows] = self.logit_of(self.embedder.embed([texts[row] for row in rows]))
        return logits

    def logit_of(self, embeddings: Float[np.ndarray, "text dim"]) -> Float[np.ndarray, " text"]:
        """Return the log-odds of texts that are embedded already."""
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.weights):
            raise DataError(
                f"judge {self.name!r} reads embeddings {len(self.weights)} wide and was given "
                f"shape {embeddings.shape}; embed the texts with {self.embedding}."
            )
        return embeddings.astype(np.float64) @ self.weights + self.intercept

    def summary(self) -> dict[str, Any]:
        """Return the row of `judges` in a comparison's metrics."""
        return {
            "persona": self.name,
            "auc": self.auc,
            "n_train": self.n_train,
            "n_test": self.n_test,
        }

    def save(self, path: str | Path) -> Path:
        """Write the judge as JSON, whole or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        target = Path(path)
        record = {"format": FORMAT, "version": VERSION, **_plain(self)}
        write_atomic(target, json.dumps(record, allow_nan=False).encode("utf-8"))
        return target


def train_judge(
    name: str,
    train: PairSet,
    held_out: PairSet | None = None,
    *,
    embedder: SentenceEmbedder | None = None,
    seed: int = 0,
) -> BehaviourJudge:
    """Train a judge on pairs that no other step sees.

    Embeddings are standardised; C is chosen by 5-fold cross-validated log-loss, with the two
    statements of a pair, and near-duplicate statements, always in one fold.

    Args:
        name: The persona.
        train: Pairs to train on.
        held_out: Pairs to measure the judge's own AUC on; none may say what a training pair says.
            If None the AUC is that of cross-validation on the training pairs, each statement
            read by a judge that saw neither its pair nor its near-duplicates.
        embedder: What embeds statements, and later texts; the shipped MiniLM if None.
        seed: Shuffles the folds.

    Raises:
        DataError: There are too few pairs, or a statement stands in both parts.
        ModelError: The embedding model is not installed.
    """
    from sklearn.metrics import roc_auc_score

    _check_parts(name, train, held_out)
    embedder = embedder or SentenceEmbedder()
    texts = [*train.positives, *train.negatives]
    tested = [] if held_out is None else [*held_out.positives, *held_out.negatives]
    embeddings = embedder.embed([*texts, *tested]).astype(np.float64)
    labels = np.arange(len(texts)) < len(train)
    groups = _pair_groups(train, texts)
    known = embeddings[: len(texts)]
    weights, intercept, c = _fit(known, labels, groups, seed)
    if held_out is None:
        auc = roc_auc_score(labels, _unseen_readings(known, labels, groups, c, seed))
    else:
        readings = embeddings[len(texts) :] @ weights + intercept
        auc = roc_auc_score(np.arange(len(tested)) < len(held_out), readings)
    return BehaviourJudge(
        name=name,
        embedding=embedder.name,
        weights=weights,
        intercept=intercept,
        c=c,
        auc=float(auc),
        n_train=len(train),
        n_test=0 if held_out is None else len(held_out),
        train_digest=train.digest,
        test_digest="" if held_out is None else held_out.digest,
        embedder=embedder,
    )


def load_judge(path: str | Path, *, embedder: SentenceEmbedder | None = None) -> BehaviourJudge:
    """Read what `BehaviourJudge.save` wrote.

    Args:
        path: The JSON file.
        embedder: What embeds the texts to judge; the shipped MiniLM if None.

    Raises:
        DataError: The file is not there, damaged or of another kind, or its embeddings are others.
    """
    source = Path(path)
    embedder = embedder or SentenceEmbedder()
    try:
        stored = _Stored.model_validate_json(source.read_bytes())
    except OSError as error:
        raise DataError(
            f"{source}: the judge cannot be read ({error.strerror}); train it again."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(
            f"{source}: field {place} of the judge is wrong ({first['msg']}); train it again."
        ) from error
    if (stored.format, stored.version) != (FORMAT, VERSION):
        raise DataError(
            f"{source}: this is {stored.format!r} of version {stored.version}, not {FORMAT!r} of "
            f"version {VERSION}; train the judge again."
        )
    if stored.embedding != embedder.name:
        raise DataError(
            f"{source}: the judge reads embeddings of {stored.embedding} and was given "
            f"{embedder.name}; load it with the embedder it was trained on."
        )
    fields = stored.model_dump(exclude={"format", "version", "weights"})
    return BehaviourJudge(**fields, weights=np.asarray(stored.weights), embedder=embedder)


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: str
    version: int
    name: str
    embedding: str
    weights: list[float] = Field(min_length=1)
    intercept: float
    c: float = Field(gt=0)
    auc: float = Field(ge=0, le=1)
    n_train: int
    n_test: int
    train_digest: str
    test_digest: str


def _plain(judge: BehaviourJudge) -> dict[str, Any]:
    names = [n for n in _Stored.model_fields if n not in ("format", "version", "weights")]
    return {**{n: getattr(judge, n) for n in names}, "weights": judge.weights.tolist()}


def _check_parts(name: str, train: PairSet, held_out: PairSet | None) -> None:
    if len(train) < FEWEST_PAIRS:
        raise DataError(
            f"judge {name!r} has {len(train)} pairs to train on, and needs at least "
            f"{FEWEST_PAIRS}; give it more pairs."
        )
    if held_out is None:
        return
    if len(held_out) < 2:
        raise DataError(
            f"judge {name!r} has {len(train)} pairs to train on and {len(held_out)} to be tested "
            f"on, and needs at least {FEWEST_PAIRS} and 2; give it more pairs."
        )
    both = _said(train) & _said(held_out)
    if both:
        raise DataError(
            f"judge {name!r}: the statement {min(both)[:60]!r} is in its training and in its test "
            "pairs; split them with split_pairs."
        )


def _said(pairs: PairSet) -> set[str]:
    return {plain_form(text).casefold() for text in (*pairs.positives, *pairs.negatives)}


def _pair_groups(pairs: PairSet, texts: Sequence[str]) -> Int[np.ndarray, " text"]:
    """Number pairs that are connected by a near-duplicate statement alike."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(pairs)
    said = near_duplicate_groups(texts)
    pair = np.tile(np.arange(n), 2)
    size = n + int(said.max()) + 1
    edges = coo_matrix((np.ones(2 * n), (pair, n + said)), shape=(size, size))
    return connected_components(edges, directed=False)[1][pair]


def _fit(
    embeddings: Float[np.ndarray, "text dim"],
    labels: Bool[np.ndarray, " text"],
    groups: Int[np.ndarray, " text"],
    seed: int,
) -> tuple[Float[np.ndarray, " dim"], float, float]:
    """Return weights on raw embeddings, intercept and C."""
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(
        _model(),
        {"logisticregression__C": STRENGTHS},
        scoring="neg_log_loss",
        cv=_folds(groups, seed),
    ).fit(embeddings, labels, groups=groups)
    scaler, regression = search.best_estimator_
    weights = regression.coef_[0] / scaler.scale_
    intercept = float(regression.intercept_[0] - scaler.mean_ @ weights)
    return weights, intercept, float(search.best_params_["logisticregression__C"])


def _unseen_readings(
    embeddings: Float[np.ndarray, "text dim"],
    labels: Bool[np.ndarray, " text"],
    groups: Int[np.ndarray, " text"],
    c: float,
    seed: int,
) -> Float[np.ndarray, " text"]:
    """Return each text's reading by a judge that was trained without its group."""
    from sklearn.model_selection import cross_val_predict

    readings = cross_val_predict(
        _model(C=c),
        embeddings,
        labels,
        groups=groups,
        # Other folds than those that chose C.
        cv=_folds(groups, seed + 1),
        method="decision_function",
    )
    return np.asarray(readings)


def _model(**settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, **settings))


def _folds(groups: Int[np.ndarray, " text"], seed: int) -> Any:
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        raise DataError(
            "the judge's training pairs are all near-duplicates of one another; give pairs that "
            "are worded differently."
        )
    return GroupKFold(folds, shuffle=True, random_state=seed)
