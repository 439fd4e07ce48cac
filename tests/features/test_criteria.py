from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from saesteer.methods.features import CRITERIA, PairCodes
from saesteer.methods.features.select import (
    auroc,
    cohens_d,
    frequency_difference,
    mean_difference,
    per_prompt_top_n,
    standardised_difference,
    t_statistic,
)
from saesteer.utils.errors import ConfigError


@pytest.mark.parametrize("name", list(CRITERIA))
def test_every_criterion_finds_the_planted_features_with_their_sign(planted, name: str):
    scores = CRITERIA[name](planted.codes)
    others = np.ones(planted.codes.d_sae, dtype=bool)
    others[[*planted.toward_positive, *planted.toward_negative, planted.dense, planted.once]] = 0
    highest = np.abs(scores[others]).max()
    assert scores[list(planted.toward_positive)].min() > highest
    assert scores[list(planted.toward_negative)].max() < -highest
    assert scores[planted.silent] == 0

    # Swapped sides turn every sign, and one pair gives finite scores.
    swapped = PairCodes(planted.negative, planted.positive)
    np.testing.assert_allclose(CRITERIA[name](swapped), -scores, atol=1e-12)
    few = PairCodes(planted.positive[:1], planted.negative[:1])
    assert np.isfinite(CRITERIA[name](few)).all()


def test_auroc_equals_sklearn_with_ties(planted):
    # Rounding makes many ties besides the zeros.
    codes = PairCodes(planted.positive.round(), planted.negative.round())
    sides = codes.stacked()
    expected = [2 * roc_auc_score(codes.labels, column) - 1 for column in sides.T]
    np.testing.assert_allclose(auroc(codes), expected, atol=1e-12)


def test_without_shrinkage_they_are_the_paired_t_test_and_the_textbooks_cohens_d(planted):
    expected = stats.ttest_rel(planted.positive, planted.negative).statistic
    actual = t_statistic(planted.codes, shrinkage=1e-12)
    live = np.arange(planted.codes.d_sae) != planted.silent
    np.testing.assert_allclose(actual[live], expected[live], rtol=1e-9)
    pooled = np.sqrt((planted.positive.var(0, ddof=1) + planted.negative.var(0, ddof=1)) / 2)
    live = pooled > 0
    expected = (planted.positive.mean(0) - planted.negative.mean(0))[live] / pooled[live]
    np.testing.assert_allclose(cohens_d(planted.codes, shrinkage=1e-12)[live], expected, rtol=1e-9)


def test_a_feature_that_fires_once_or_differs_little_and_evenly_does_not_win(planted):
    assert np.argmax(np.abs(mean_difference(planted.codes)[:50])) in (3, 17, 29, 8, 41)
    scores = np.abs(standardised_difference(planted.codes))
    assert scores[planted.once] < scores[[3, 17, 29, 8, 41]].min() / 2

    positive, negative = planted.positive.copy(), planted.negative.copy()
    positive[:, 10], negative[:, 10] = 1e-6, 0
    scores = np.abs(standardised_difference(PairCodes(positive, negative)))
    assert scores[10] < scores[[3, 17, 29, 8, 41]].min()


def test_settings_that_choose_nothing_are_refused(planted):
    with pytest.raises(ConfigError, match="shrinkage"):
        standardised_difference(planted.codes, shrinkage=0.0)
    with pytest.raises(ConfigError, match="give 1 or more"):
        per_prompt_top_n(planted.codes, n=0)


def test_frequency_and_top_n_count_by_hand(planted):
    expected = (planted.positive != 0).mean(0) - (planted.negative != 0).mean(0)
    np.testing.assert_allclose(frequency_difference(planted.codes), expected)
    positive = np.array([[3.0, 0, 0, 1], [0, 0, 2, 0], [1, 1, 0, 0]])
    negative = np.array([[0.0, 2, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
    codes = PairCodes(positive, negative)
    # Pair 0 names +0 and -1, pair 1 names -0 and +2, pair 2 ties at +0 and +1.
    np.testing.assert_array_equal(per_prompt_top_n(codes, n=2), [1, 0, 1, 0])
    # With one each the tie of pair 2 goes to the lower index.
    np.testing.assert_array_equal(per_prompt_top_n(codes, n=1), [1, 0, 0, 0])
