"""One feature: the one that the criterion names, on its own side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.methods import FitContext, TopFeature
from saesteer.methods.features import CRITERIA
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, DataError

WIDTH, PAIRS = 6, 40
STEADY, STRONG, NEGATIVE, SILENT = 2, 7, 9, 11


@pytest.fixture
def given(mirror_sae, given_codes) -> FitContext:
    """STEADY differs a little and always, STRONG much and seldom, NEGATIVE the other way."""
    rng = np.random.default_rng(0)
    positive = 0.1 * rng.random((PAIRS, 2 * WIDTH))
    negative = 0.1 * rng.random((PAIRS, 2 * WIDTH))
    positive[:, STEADY], negative[:, STEADY] = 1 + 0.1 * rng.random(PAIRS), 0
    positive[:, STRONG] = np.where(np.arange(PAIRS) < 4, 60, 0)
    negative[:, STRONG] = 0
    positive[:, NEGATIVE], negative[:, NEGATIVE] = 0, 0.5 + 0.3 * rng.random(PAIRS)
    positive[:, SILENT] = negative[:, SILENT] = 0
    return given_codes(positive, negative, load_sae(mirror_sae(d_in=WIDTH, gain=0.5)))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_chooses_its_own_first_feature(criterion, given):
    fitted = TopFeature(criterion).fit_in(given)
    scores = CRITERIA[criterion](given.codes)
    best = max(range(2 * WIDTH), key=lambda index: (abs(scores[index]), -index))
    (feature,) = fitted.vector_.sae_features
    assert feature.index == best
    assert np.sign(feature.weight) == np.sign(scores[best])
    np.testing.assert_allclose(fitted.scores_, scores)


def test_the_vector_is_the_mean_difference_along_one_decoder_row(given):
    vector = TopFeature("mean_difference").fit_in(given).vector_
    wanted = 6.0 * given.sae.decoder[STRONG]
    torch.testing.assert_close(vector.raw, wanted, rtol=1e-5, atol=1e-6)


def chosen(given: FitContext, n_candidates: int = 32, **scores: float):
    output = np.full(2 * WIDTH, np.nan)
    places = {"steady": STEADY, "strong": STRONG, "negative": NEGATIVE, "silent": SILENT}
    for name, score in scores.items():
        output[places[name]] = score
    given.output_scores = output
    (feature,) = TopFeature("output_score", n_candidates).fit_in(given).vector_.sae_features
    return feature


def test_output_score_chooses_the_highest_among_features_that_separate_best(given):
    feature = chosen(given, steady=0.2, strong=0.1, negative=0.7, silent=0.9)
    assert feature.index == NEGATIVE
    assert feature.weight == pytest.approx(given.codes.mean_delta[NEGATIVE])
    assert chosen(given, 2, steady=0.2, strong=0.9, negative=0.1).index == STEADY
    assert chosen(given, 3, steady=0.2, strong=0.9, negative=0.1).index == STRONG
    with pytest.raises(DataError, match=r"no feature that has an output score differs"):
        chosen(given, silent=0.5)


def test_an_unknown_criterion_is_named_with_the_closest_known_one():
    with pytest.raises(ConfigError, match=r"criterion: 'output_scores' .*did you mean 'output_sc"):
        TopFeature("output_scores")
