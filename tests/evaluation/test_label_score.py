"""Labels are scored on the right texts: five that fire the feature, five that do not."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.evaluation.explain import read_phrase
from saesteer.evaluation.label_score import FeaturePeaks, label_aucs, score_labels

TEXTS = [f"text {n}" for n in range(40)]


@pytest.fixture
def read() -> FeaturePeaks:
    peaks = np.zeros((40, 4), dtype=np.float16)
    peaks[:10, 0] = np.arange(1, 11)  # Strongly from text 4 on.
    peaks[:36, 1] = 1  # Too few texts without it.
    peaks[:4, 2] = 1  # Too few with it.
    peaks[30:, 3] = 2
    return FeaturePeaks(TEXTS, peaks)


def number(text: str) -> int:
    return int(text.split()[1])


def test_texts_fire_a_feature_or_do_not(read):
    tests = {test.feature: test for test in read.draw(seed=3)}
    assert set(tests) == {0, 3}
    assert all(number(text) < 10 for text in tests[0].firing)
    assert all(number(text) >= 10 for text in tests[0].silent)
    assert len(set(tests[0].firing)) == len(set(tests[0].silent)) == 5
    strong = {test.feature: test for test in read.draw(seed=3, strongly=True)}
    assert all(4 <= number(text) < 10 for text in strong[0].firing)
    # A feature's texts do not hang on which others are drawn.
    assert read.draw([3, 2], seed=3) == [tests[3]]
    assert len(read.draw(number=1, seed=3)) == 1
    assert read.draw(seed=4) != list(tests.values())


def test_a_label_is_worth_the_auc_of_its_similarity(read):
    def embed(texts):
        # Closeness of two texts is that of their numbers.
        angles = np.array([number(text) / 40 for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    tests = read.draw([0, 3])
    assert label_aucs(tests, {0: "text 0", 3: "text 39"}, embed).tolist() == [1, 1]
    assert label_aucs(tests, {0: "text 39", 3: ""}, embed).tolist() == [0, 0.5]
    found = score_labels({0: "text 00", 3: "text 00"}, tests, [], embed)
    assert found == {
        "features": 2,
        "auc": 0.5,
        "error": 0.5,
        "strong_auc": None,
        "strong_error": None,
        "broken": 0.0,
    }


def test_a_phrase_is_one_line_of_text():
    assert read_phrase("<think>Hm.\nWell.</think>\n“Legal terms.”\n") == "Legal terms"
    for reply in ("", "Two\nlines", "x" * 161, "a\x07b"):
        assert read_phrase(reply) == ""
