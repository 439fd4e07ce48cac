"""The judge reads like scikit-learn's regression and chooses like a plain loop."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from saesteer.data import pairs_from
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.judge import STRENGTHS, _pair_groups, train_judge
from saesteer.utils.errors import DataError

WIDTH = 12


class WordEmbedder(SentenceEmbedder):
    """Each word has a fixed random direction; a text is the sum of its words'."""

    def __init__(self):
        super().__init__("words")

    def embed(self, texts):
        def word(w):
            return np.random.default_rng(zlib.crc32(w.encode())).normal(size=WIDTH)

        rows = [np.sum([word(w) for w in t.split()] or [np.zeros(WIDTH)], axis=0) for t in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), WIDTH)


def _pairs(n, start=0, strength=1):
    rng = np.random.default_rng(start)

    def words(k):
        return " ".join("".join(rng.choice(list("abdefghiklmno"), 5)) for _ in range(k))

    return pairs_from(
        [
            {
                "positive": f"{words(3)} {'glad ' * strength}{start + i}",
                "negative": f"{words(3)} {'grim ' * strength}{start + i}",
            }
            for i in range(n)
        ]
    )


@pytest.fixture(scope="module")
def judge():
    return train_judge("joy", _pairs(40), embedder=WordEmbedder())


def test_the_sides_come_apart_on_pairs_it_never_saw(judge):
    fresh = _pairs(20, 5000)
    assert judge.logit(fresh.positives).mean() > judge.logit(fresh.negatives).mean() + 1
    assert judge.auc > 0.8
    assert judge.summary() == {"persona": "joy", "auc": judge.auc, "n_train": 40, "n_test": 0}
    # Blank text is missing.
    np.testing.assert_array_equal(np.isnan(judge.logit(["", "  \n", "glad"])), [True, True, False])
    assert judge.logit([]).shape == (0,)


def test_logit_strength_and_auc_are_those_of_plain_scikit_learn(judge):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(c, rows):
        made = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        return made.fit(x[rows], y[rows])

    def folds(seed):
        return GroupKFold(5, shuffle=True, random_state=seed).split(x, y, _pair_groups(texts))

    train = _pairs(40)
    texts = [*train.positives, *train.negatives]
    x, y = WordEmbedder().embed(texts).astype(np.float64), np.repeat([1, 0], 40)
    fresh = _pairs(9, 7000).positives
    wanted = fitted(judge.c, np.arange(80)).decision_function(WordEmbedder().embed(fresh))
    np.testing.assert_allclose(judge.logit(fresh), wanted, rtol=1e-4, atol=1e-4)
    losses = [
        np.mean(
            [log_loss(y[rest], fitted(c, fit).predict_proba(x[rest])) for fit, rest in folds(0)]
        )
        for c in STRENGTHS
    ]
    assert judge.c == STRENGTHS[int(np.argmin(losses))]
    # The AUC is of readings by judges that saw neither statement.
    readings = np.zeros(80)
    for fit, rest in folds(1):
        readings[rest] = fitted(judge.c, fit).decision_function(x[rest])
    assert judge.auc == pytest.approx(np.mean(readings[:40, None] > readings[None, 40:]))


def test_a_pair_and_its_near_duplicates_stay_in_one_fold():
    pairs = pairs_from(
        [
            ("I like the quiet evening at home", "I hate every party in town"),
            ("My garden is full of flowers", "Nothing grows where I live"),
            ("Rain makes me sing loudly", "I hate every party in town!"),
        ]
    )
    groups = _pair_groups([*pairs.positives, *pairs.negatives])
    assert groups[0] == groups[3] == groups[2] == groups[5]
    assert groups[1] == groups[4] != groups[0]


def test_too_few_or_too_like_pairs_are_refused():
    with pytest.raises(DataError, match="9 pairs to train on"):
        train_judge("joy", _pairs(9), embedder=WordEmbedder())
    alike = pairs_from([(f"I am always so very glad {i}", f"so grim {i}") for i in range(12)])
    with pytest.raises(DataError, match="near-duplicates"):
        train_judge("joy", alike, embedder=WordEmbedder())
