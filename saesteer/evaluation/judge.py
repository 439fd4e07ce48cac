"""A behaviour judge: does a text sound like the positive or the negative side?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saesteer.data.near_duplicates import near_duplicate_groups
from saesteer.data.pairs import PairSet
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.utils.errors import DataError

FOLDS = 5
FEWEST_PAIRS = 10
STRENGTHS = tuple(float(c) for c in np.logspace(-5, 1, 13))


@dataclass(frozen=True, eq=False)
class BehaviourJudge:
    """Logistic regression on sentence embeddings; the logit is its reading."""

    name: str  # of the persona
    weights: Float[np.ndarray, " dim"]  # on raw embeddings, the standardisation folded in
    intercept: float
    c: float  # the inverse regularisation chosen by cross-validation
    # Area under the ROC curve of cross-validation: the chance that a positive statement reads
    # higher than a negative one to a judge that saw neither.
    auc: float
    n_train: int
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
        return embeddings.astype(np.float64) @ self.weights + self.intercept

    def summary(self) -> dict[str, Any]:
        """Return the row of `judges` in a comparison's metrics."""
        # No pairs are left to test on: the AUC is that of cross-validation.
        return {"persona": self.name, "auc": self.auc, "n_train": self.n_train, "n_test": 0}


def train_judge(
    name: str, train: PairSet, *, embedder: SentenceEmbedder | None = None, seed: int = 0
) -> BehaviourJudge:
    """Train a judge on pairs that no other step sees.

    Embeddings are standardised; C is chosen by 5-fold cross-validated log-loss, with the two
    statements of a pair, and near-duplicate statements, always in one fold. The AUC is of other
    folds than those that chose C.

    Raises:
        DataError: There are too few pairs, or all say the same.
        ModelError: The embedding model is not installed.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(train) < FEWEST_PAIRS:
        raise DataError(
            f"judge {name!r} has {len(train)} pairs to train on, and needs at least "
            f"{FEWEST_PAIRS}; give it more pairs."
        )
    embedder = embedder or SentenceEmbedder()
    texts = [*train.positives, *train.negatives]
    known = embedder.embed(texts).astype(np.float64)
    labels: Bool[np.ndarray, " text"] = np.arange(len(texts)) < len(train)
    groups = _pair_groups(texts)
    n_folds = min(FOLDS, len(np.unique(groups)))
    if n_folds < 2:
        raise DataError(
            "the judge's training pairs are all near-duplicates of one another; give pairs that "
            "are worded differently."
        )
    choosing, scoring = (GroupKFold(n_folds, shuffle=True, random_state=seed + i) for i in (0, 1))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": STRENGTHS},
        scoring="neg_log_loss",
        cv=choosing,
    ).fit(known, labels, groups=groups)
    chosen: Any = search.best_estimator_
    unseen = cross_val_predict(
        chosen, known, labels, groups=groups, cv=scoring, method="decision_function"
    )
    scaler, regression = chosen
    weights = regression.coef_[0] / scaler.scale_
    return BehaviourJudge(
        name=name,
        weights=weights,
        intercept=float(regression.intercept_[0] - scaler.mean_ @ weights),
        c=regression.C,
        auc=float(roc_auc_score(labels, unseen)),
        n_train=len(train),
        embedder=embedder,
    )


def _pair_groups(texts: Sequence[str]) -> Int[np.ndarray, " text"]:
    """Number pairs that are connected by a near-duplicate statement alike.

    The texts are all positive sides, then all negative ones in the same order.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(texts) // 2
    said = near_duplicate_groups(texts)
    pair = np.tile(np.arange(n), 2)
    size = n + int(said.max()) + 1
    edges = coo_matrix((np.ones(2 * n), (pair, n + said)), shape=(size, size))
    return connected_components(edges, directed=False)[1][pair]
