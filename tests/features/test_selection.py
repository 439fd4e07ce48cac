from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from saesteer.methods.features import CRITERIA, PairCodes, select_features
from saesteer.methods.features.select import per_prompt_top_n
from saesteer.utils.errors import ConfigError, DataError, MismatchError


def test_the_planted_features_are_chosen_and_the_dense_one_is_not(planted):
    wanted = dict.fromkeys(planted.toward_positive, 1) | dict.fromkeys(planted.toward_negative, -1)
    own = partial(per_prompt_top_n, n=8)
    for criterion in (*CRITERIA.keys() - {"mean_difference"}, own):
        chosen = select_features(planted.codes, criterion=criterion, n_features=5)
        signs = dict(zip(chosen.indices.tolist(), chosen.signs.tolist(), strict=True))
        assert signs == wanted, criterion


def test_a_single_outlier_misleads_the_mean_unless_it_must_fire_more_often(planted):
    naive = select_features(planted.codes, criterion="mean_difference", min_firing=0.0)
    assert naive.indices[0] == planted.once
    stricter = select_features(planted.codes, criterion="mean_difference", n_features=5)
    assert planted.once not in stricter.indices


def test_features_come_strongest_first_with_the_lower_index_at_a_tie():
    positive = np.array([[1.0, 2, 0, 1], [1, 2, 0, 1]])
    negative = np.array([[0.0, 0, 1, 0], [0, 0, 1, 0]])
    codes = PairCodes(positive, negative)
    chosen = select_features(codes, criterion="mean_difference", n_features=3)
    assert chosen.indices.tolist() == [1, 0, 2]
    assert chosen.scores.tolist() == [2, 1, -1]
    assert chosen.n_candidates == 4
    assert len(chosen) == 3


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


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"criterion": "aurok"}, r"criterion: 'aurok' is not known \(did you mean 'auroc'"),
        ({"n_features": 0}, "n_features"),
        ({"min_firing": 0.7, "max_firing": 0.6}, "min_firing"),
        ({"max_density": 0.1}, "max_density"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(planted, settings, field: str):
    with pytest.raises(ConfigError, match=field):
        select_features(planted.codes, **settings)
