"""Sums of decoder rows weigh the features that a loop by hand picks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods import FitContext, RandomFeatures, TargetAtoms, TopFeature
from saesteer.methods.features import CRITERIA, vector_of_features
from saesteer.saes import load_sae
from saesteer.steering import to_raw
from saesteer.utils.errors import DataError, SaeError, SteeringError

WIDTH, PAIRS = 20, 50
STEADY, STRONG, NEGATIVE, SILENT = 2, 7, 9, 11


@pytest.fixture(scope="module")
def sae(mirror_sae):
    """Rows are unit vectors: feature k is axis k, feature 20 + k its opposite."""
    return load_sae(mirror_sae(d_in=WIDTH))


def test_the_vector_is_the_weighted_sum_of_rows_of_the_saes_model(mirror_sae):
    sae = load_sae(mirror_sae(d_in=WIDTH, model_fingerprint="f" * 64))
    weights, words = {3: 2.0, 5: -1.0, 7: 0.0}, {3: "kind"}
    vector = vector_of_features(sae, weights, model="tiny", descriptions=words)
    expected = np.zeros(WIDTH)
    expected[[3, 5]] = 2.0, -1.0
    assert np.allclose(vector.raw.numpy(), expected, atol=1e-6)
    assert [(f.index, f.weight, f.description) for f in vector.sae_features] == [
        (3, 2.0, "kind"),
        (5, -1.0, None),
    ]
    assert vector.max_act is None and vector.residual_norm is None
    assert (vector.sae_fingerprint, vector.model_fingerprint) == (sae.fingerprint, "f" * 64)
    # "max_act" puts each feature at its own maximum.
    peaks = {3: 4.0, 5: 3.0}
    vector = vector_of_features(sae, {3: 1.0, 5: -1.0}, model="tiny", max_activation=peaks)
    assert to_raw(1.0, "max_act", vector) == pytest.approx(5.0)


def test_what_makes_no_vector_is_refused(sae):
    for weights in ({}, {3: 0.0}, {3: 1.0, 23: 1.0}):
        with pytest.raises(SteeringError):
            vector_of_features(sae, weights, model="tiny")
    for index in (40, -1):
        with pytest.raises(SaeError, match="0 to 39"):
            vector_of_features(sae, {index: 1.0}, model="tiny")


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Sides that differ in amplitude and in frequency, each on its own; the last ten never fire."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        fires = rng.random((PAIRS, 2 * WIDTH)) < rng.random(2 * WIDTH)
        values = fires * rng.exponential(rng.uniform(0.2, 3, 2 * WIDTH), (PAIRS, 2 * WIDTH))
        values[:, -10:] = 0
        made.append(values)
    return made[0], made[1]


def by_hand(positive, negative, amplitude_quantile, frequency_quantile) -> dict[int, float]:
    amplitude = (positive - negative).mean(axis=0)
    frequency = (positive > 0).mean(axis=0) - (negative > 0).mean(axis=0)
    fires = [j for j in range(2 * WIDTH) if positive[:, j].any() or negative[:, j].any()]
    agree = [j for j in fires if amplitude[j] * frequency[j] > 0]
    least_a = np.quantile([abs(amplitude[j]) for j in fires], amplitude_quantile)
    least_f = np.quantile([abs(frequency[j]) for j in agree], frequency_quantile)
    return {
        j: amplitude[j]
        for j in agree
        if abs(amplitude[j]) >= least_a and abs(frequency[j]) >= least_f
    }


@pytest.mark.parametrize("quantiles", [(0.65, 0.65), (0.2, 0.9), (0.0, 0.0)])
def test_it_keeps_what_a_loop_by_hand_keeps(quantiles, sae, given_codes):
    positive, negative = drawn()
    wanted = by_hand(positive, negative, *quantiles)
    vector = TargetAtoms(*quantiles).fit_in(given_codes(positive, negative, sae)).vector_
    assert {f.index: pytest.approx(f.weight) for f in vector.sae_features} == wanted


def test_where_none_passes_both_the_vector_says_that_it_is_zero(sae, given_codes):
    positive, negative = np.zeros((2, PAIRS, 2 * WIDTH))
    # It fires more often on the positive side, and more strongly on the negative one.
    positive[:, 0], negative[:10, 0] = 1.0, 90.0
    with pytest.raises(SteeringError, match=r"is zero"):
        TargetAtoms(0.0, 0.0).fit_in(given_codes(positive, negative, sae))


@pytest.fixture
def given(sae, given_codes) -> FitContext:
    """STEADY differs a little and always, STRONG much and seldom, NEGATIVE the other way."""
    rng = np.random.default_rng(0)
    positive = 0.1 * rng.random((PAIRS, 2 * WIDTH))
    negative = 0.1 * rng.random((PAIRS, 2 * WIDTH))
    positive[:, STEADY], negative[:, STEADY] = 1 + 0.1 * rng.random(PAIRS), 0
    positive[:, STRONG] = np.where(np.arange(PAIRS) < 5, 60, 0)
    negative[:, STRONG] = 0
    positive[:, NEGATIVE], negative[:, NEGATIVE] = 0, 0.5 + 0.3 * rng.random(PAIRS)
    positive[:, SILENT] = negative[:, SILENT] = 0
    return given_codes(positive, negative, sae)


def test_every_criterion_chooses_its_own_first_feature(given):
    for criterion, score in CRITERIA.items():
        fitted = TopFeature(criterion).fit_in(given)
        scores = score(given.codes)
        best = max(range(2 * WIDTH), key=lambda index: (abs(scores[index]), -index))
        (feature,) = fitted.vector_.sae_features
        assert feature.index == best, criterion
        assert np.sign(feature.weight) == np.sign(scores[best])
        np.testing.assert_allclose(fitted.scores_, scores)
    # The vector is the mean difference along one decoder row.
    vector = TopFeature("mean_difference").fit_in(given).vector_
    wanted = 6.0 * given.sae.decoder[STRONG]
    torch.testing.assert_close(vector.raw, wanted, rtol=1e-5, atol=1e-6)


def test_of_the_positive_side_alone_the_best_that_fires_there(given, given_codes, sae):
    codes = given.codes
    turned = given_codes(codes.negative.toarray(), codes.positive.toarray(), sae)
    cases: Any = (("either", STRONG, -1), ("positive", NEGATIVE, 1))
    for side, index, sign in cases:
        fitted = TopFeature("mean_difference", side=side).fit_in(turned)
        (feature,) = fitted.vector_.sae_features
        assert (feature.index, np.sign(feature.weight)) == (index, sign)
        np.testing.assert_allclose(fitted.scores_, CRITERIA["mean_difference"](turned.codes))


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


FIRES = np.arange(120) < 90


@pytest.fixture
def firing(mirror_sae, given_codes) -> FitContext:
    rng = np.random.default_rng(0)
    positive, negative = rng.exponential(size=(2, 12, 120)) * FIRES
    return given_codes(positive, negative, load_sae(mirror_sae(d_in=60)))


def weights(given: FitContext, draw: int = 0, n: int = 32) -> dict[int, float]:
    return {f.index: f.weight for f in RandomFeatures(draw, n).fit_in(given).vector_.sae_features}


def test_each_feature_weighs_its_mean_absolute_difference(firing):
    sizes = np.abs(firing.codes.positive.toarray() - firing.codes.negative.toarray()).mean(axis=0)
    for draw in range(5):
        drawn = weights(firing, draw)
        assert len(drawn) == 32
        assert all(abs(weight) == pytest.approx(sizes[j]) for j, weight in drawn.items())
        assert all(FIRES[index] for index in drawn)
    assert len(weights(firing, n=1000)) == 90


def test_features_and_signs_are_left_to_chance(firing):
    draws = [weights(firing, draw, 30) for draw in range(200)]
    counts = np.bincount([index for drawn in draws for index in drawn], minlength=120)
    # 30 of 90 features, 200 times: 67 each, standard deviation 6.7.
    assert counts[FIRES].min() > 35 and counts[FIRES].max() < 100
    signs = np.array([np.sign(weight) for drawn in draws for weight in drawn.values()])
    assert abs(signs.mean()) < 0.05

    # Draws and seeds repeat and differ.
    first = weights(firing, 3)
    assert weights(firing, 3) == first != weights(firing, 4)
    firing.seed = 1
    assert weights(firing, 3) != first
