"""Judges read as a plain loop would, and are believed as far as answers of known sides bear out."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from saesteer.data import pairs_from
from saesteer.evaluation.described_judge import DescribedJudge
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.judge import (
    STRENGTHS,
    AdmittedJudge,
    EmbeddingJudge,
    Judge,
    _pair_groups,
    separation,
)
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
    return EmbeddingJudge(_pairs(40), embedder=WordEmbedder())


def test_the_sides_come_apart_on_pairs_it_never_saw(judge):
    fresh = _pairs(20, 5000)
    assert judge.read(fresh.positives).mean() > judge.read(fresh.negatives).mean() + 1
    assert judge.auc > 0.8
    # Blank text is missing.
    np.testing.assert_array_equal(np.isnan(judge.read(["", "  \n", "glad"])), [True, True, False])
    assert judge.read([]).shape == (0,)


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
        return GroupKFold(5, shuffle=True, random_state=seed).split(
            x, y, _pair_groups(texts, [None] * 40)
        )

    train = _pairs(40)
    texts = [*train.positives, *train.negatives]
    x, y = WordEmbedder().embed(texts).astype(np.float64), np.repeat([1, 0], 40)
    fresh = _pairs(9, 7000).positives
    wanted = fitted(judge.c, np.arange(80)).decision_function(WordEmbedder().embed(fresh))
    np.testing.assert_allclose(judge.read(fresh), wanted, rtol=1e-4, atol=1e-4)
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


def test_what_belongs_together_stays_in_one_fold():
    sides = [
        ("I like the quiet evening at home", "I hate every party in town", None),
        ("My garden is full of flowers", "Nothing grows where I live", "What do you see?"),
        ("Rain makes me sing loudly", "I hate every party in town!", None),
        ("A river of traffic", "Some dull brick wall", "What do you see?"),
    ]
    groups = _pair_groups([s[0] for s in sides] + [s[1] for s in sides], [s[2] for s in sides])
    # A near-duplicate statement, and one question, join pairs.
    assert groups[0] == groups[4] == groups[2] == groups[6]
    assert groups[1] == groups[5] == groups[3] == groups[7] != groups[0]


def test_too_few_or_too_like_pairs_are_refused():
    with pytest.raises(DataError, match="9 pairs to train on"):
        EmbeddingJudge(_pairs(9), embedder=WordEmbedder())
    alike = pairs_from([(f"I am always so very glad {i}", f"so grim {i}") for i in range(12)])
    with pytest.raises(DataError, match="near-duplicates"):
        EmbeddingJudge(alike, embedder=WordEmbedder())


class Told(Judge):
    """Reads a number out of the text."""

    kind = "told"
    name = "told"

    def read(self, texts, questions):
        return np.array([float(text) if text.strip() else np.nan for text in texts])


def _answers(sides):
    return pairs_from(
        [
            {"positive": str(a), "negative": str(b), "prompt": f"Question {i}?"}
            for i, (a, b) in enumerate(sides)
        ]
    )


def test_a_judge_is_admitted_by_its_auc_on_answers_and_reads_in_their_distance():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    for shift, verdict in ((3.0, "admitted"), (1.5, "doubtful"), (0.1, "not admitted")):
        sides = np.round(rng.normal([shift, 0], 1.0, (60, 2)), 6)
        told = AdmittedJudge(Told(), _answers(sides))
        auc = roc_auc_score(np.repeat([1, 0], 60), sides.T.ravel())
        assert told.separation.auc == pytest.approx(auc)
        assert told.separation.low < auc < told.separation.high
        assert told.verdict == verdict
        assert told.summary()["verdict"] == verdict
    # Half way between the sides is 0, and from one side's mean to the other's is 1.
    told = AdmittedJudge(Told(), _answers([(5 + i % 2, 1 + i % 2) for i in range(12)]))
    np.testing.assert_allclose(
        told.read(["3.5", "5.5", "1.5", " "], [""] * 4), [0, 0.5, -0.5, np.nan]
    )
    with pytest.raises(DataError, match="9 a side"):
        AdmittedJudge(Told(), _answers([(1, 0)] * 9))


def test_an_embedding_judge_is_admitted_by_folds_that_did_not_see_the_answer():
    nonsense = _pairs(20, 3, strength=0)
    answers = pairs_from(
        [
            {"positive": p.positive, "negative": p.negative, "prompt": f"Question {i}?"}
            for i, p in enumerate(nonsense)
        ]
    )
    judge = EmbeddingJudge(_pairs(40), answers, embedder=WordEmbedder())
    admitted = AdmittedJudge(judge, answers)
    assert admitted.separation.auc == pytest.approx(judge.auc)
    assert admitted.verdict == "not admitted"


def test_separation_resamples_whole_questions():
    rng = np.random.default_rng(2)
    mood = rng.normal(size=30)
    up = [m + rng.normal(size=4) + 1 for m in mood]
    down = [m + rng.normal(size=4) for m in mood]
    found = separation(up, down, resamples=4000)
    draws = []
    for _ in range(2000):
        drawn = rng.integers(0, 30, 30)
        a, b = np.concatenate([up[i] for i in drawn]), np.concatenate([down[i] for i in drawn])
        draws.append((a[:, None] > b[None]).mean())
    np.testing.assert_allclose(found[1:], np.percentile(draws, [2.5, 97.5]), atol=0.012)
    with pytest.raises(DataError, match="no text of one side"):
        separation([np.array([np.nan])], [np.array([1.0])])


def test_a_described_judge_is_the_mean_over_framings_of_differences_by_hand(tiny_llama):
    sides = ("a kind, gentle person.", "a cruel person")
    texts, questions = ["I hug you.", "  ", "I hit you and I laugh."], ["Who are you?"] * 3
    judge = DescribedJudge(tiny_llama, sides)
    readings = judge.read(texts, questions)
    assert np.isnan(readings[1])

    def said(prompt, text):
        tokenizer = tiny_llama.tokenizer
        encoded = tokenizer(prompt + text, return_offsets_mapping=True)
        ids = torch.tensor([encoded.input_ids])
        first = next(i for i, (_, end) in enumerate(encoded.offset_mapping) if end > len(prompt))
        with torch.no_grad():
            logits = tiny_llama(ids).float().log_softmax(-1)
        own = logits[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return float(own[first - 1 :].mean())

    for place in (0, 2):
        text = texts[place]
        means = []
        for who in ("a kind, gentle person", "a cruel person"):
            template = tiny_llama.tokenizer.apply_chat_template(
                [
                    {"role": "system", "content": f"You are {who}."},
                    {"role": "user", "content": "Who are you?"},
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
            asked = f"{who[0].upper()}{who[1:]} was asked: Who are you? The answer was:"
            framings = [
                f"The following was said by {who}:",
                f"Imagine {who}. This is how such a person talks:",
                asked,
            ]
            joined = [said(f"{prompt} ", text) for prompt in framings]
            means.append(np.mean([*joined, said(template, text)]))
        assert readings[place] == pytest.approx(means[0] - means[1], abs=2e-2)
