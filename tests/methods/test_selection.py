"""Criteria that score features, and the features that are chosen by them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from saesteer.methods.features import CRITERIA, PairCodes, select_features
from saesteer.methods.features.select import (
    auroc,
    cohens_d,
    frequency_difference,
    per_prompt_top_n,
    t_statistic,
)
from saesteer.utils.errors import DataError, MismatchError


def test_the_planted_features_are_chosen_and_the_dense_one_is_not(planted):
    wanted = dict.fromkeys(planted.toward_positive, 1) | dict.fromkeys(planted.toward_negative, -1)
    own = partial(per_prompt_top_n, n=8)
    for criterion in (*CRITERIA.keys() - {"mean_difference"}, own):
        chosen = select_features(planted.codes, criterion=criterion, n_features=5)
        signs = dict(zip(chosen.indices.tolist(), chosen.signs.tolist(), strict=True))
        assert signs == wanted, criterion
    # Strongest first, the lower index at a tie.
    codes = PairCodes(np.array([[1.0, 2, 0, 1]] * 2), np.array([[0.0, 0, 1, 0]] * 2))
    chosen = select_features(codes, criterion="mean_difference", n_features=3)
    assert chosen.indices.tolist() == [1, 0, 2]
    assert (chosen.scores.tolist(), chosen.n_candidates) == ([2, 1, -1], 4)


def test_a_single_outlier_misleads_the_mean_unless_it_must_fire_more_often(planted):
    naive = select_features(planted.codes, criterion="mean_difference", min_firing=0.0)
    assert naive.indices[0] == planted.once
    stricter = select_features(planted.codes, criterion="mean_difference", n_features=5)
    assert planted.once not in stricter.indices


def test_density_takes_away_features_that_are_common_in_the_corpus(planted):
    density = np.full(planted.codes.d_sae, 0.01)
    density[17] = 0.2
    chosen = select_features(planted.codes, n_features=5, density=density, max_density=0.1)
    assert 17 not in chosen.indices

    # And a threshold on the score leaves the strong ones.
    chosen = select_features(planted.codes, criterion="t_statistic", min_abs_score=4.0)
    assert set(chosen.indices) == {*planted.toward_positive, *planted.toward_negative}
    assert chosen.n_candidates == 5


def test_when_nothing_is_left_the_sentence_counts_what_each_filter_took(planted):
    with pytest.raises(DataError) as caught:
        select_features(planted.codes, min_firing=0.7, max_firing=0.9)
    message = str(caught.value)
    assert "none of the 60 features is left" in message
    assert "never fires: 1" in message
    assert "fires on less than min_firing=0.7: 58" in message
    assert "fires on more than max_firing=0.9: 1" in message


def test_activations_too_large_to_square_and_densities_of_another_sae_are_refused(planted):
    with pytest.raises(MismatchError, match=r"density: shape \(61,\) is not \(60,\)"):
        select_features(planted.codes, density=np.zeros(61), max_density=0.1)
    huge = planted.positive.copy()
    huge[:20, 3] = 1e300
    with pytest.raises(
        DataError, match=r"criterion standardised_difference: row 3 .* not all finite"
    ):
        select_features(PairCodes(huge, planted.negative))


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
