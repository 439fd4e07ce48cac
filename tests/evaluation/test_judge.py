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


def test_the_logit_is_scikit_learns_own(judge):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, embedder = _pairs(40), WordEmbedder()
    x = embedder.embed([*train.positives, *train.negatives]).astype(np.float64)
    y = np.repeat([1, 0], 40)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=judge.c, max_iter=2000).fit(scaler.transform(x), y)
    texts = _pairs(9, 7000).positives
    wanted = model.decision_function(scaler.transform(embedder.embed(texts)))
    np.testing.assert_allclose(judge.logit(texts), wanted, rtol=1e-4, atol=1e-4)


def test_c_is_the_one_with_the_lowest_loss_over_folds_of_whole_pairs(judge):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    train = _pairs(40)
    texts = [*train.positives, *train.negatives]
    x, y = WordEmbedder().embed(texts).astype(np.float64), np.repeat([1, 0], 40)
    groups = _pair_groups(texts)
    losses = []
    for c in STRENGTHS:
        loss = []
        for fit, rest in GroupKFold(5, shuffle=True, random_state=0).split(x, y, groups):
            scaler = StandardScaler().fit(x[fit])
            model = LogisticRegression(C=c, max_iter=2000).fit(scaler.transform(x[fit]), y[fit])
            loss.append(log_loss(y[rest], model.predict_proba(scaler.transform(x[rest]))))
        losses.append(np.mean(loss))
    assert judge.c == STRENGTHS[int(np.argmin(losses))]


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


def test_the_auc_is_of_readings_by_judges_that_saw_neither_statement(judge):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    train = _pairs(40)
    texts = [*train.positives, *train.negatives]
    x, y = WordEmbedder().embed(texts).astype(np.float64), np.repeat([1, 0], 40)
    readings = np.zeros(80)
    folds = GroupKFold(5, shuffle=True, random_state=1).split(x, y, _pair_groups(texts))
    for fit, rest in folds:
        scaler = StandardScaler().fit(x[fit])
        model = LogisticRegression(C=judge.c, max_iter=2000).fit(scaler.transform(x[fit]), y[fit])
        readings[rest] = model.decision_function(scaler.transform(x[rest]))
    assert judge.auc == pytest.approx(np.mean(readings[:40, None] > readings[None, 40:]))


def test_blank_text_is_missing(judge):
    logits = judge.logit(["", "  \n", "glad"])
    assert np.isnan(logits[:2]).all()
    assert np.isfinite(logits[2])
    assert judge.logit([]).shape == (0,)


def test_too_few_or_too_like_pairs_are_refused():
    with pytest.raises(DataError, match="9 pairs to train on"):
        train_judge("joy", _pairs(9), embedder=WordEmbedder())
    alike = pairs_from([(f"I am always so very glad {i}", f"so grim {i}") for i in range(12)])
    with pytest.raises(DataError, match="near-duplicates"):
        train_judge("joy", alike, embedder=WordEmbedder())
