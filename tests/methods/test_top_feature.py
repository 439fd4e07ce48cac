"""One feature: the one that the criterion names, on its own side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.methods import MethodInputs, TopFeature
from saesteer.methods.features import CRITERIA, PairCodes
from saesteer.models import Site
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, DataError, MismatchError

WIDTH, PAIRS = 6, 40
STEADY, STRONG, NEGATIVE, SILENT = 2, 7, 9, 11


@pytest.fixture(scope="module")
def inputs(mirror_sae) -> MethodInputs:
    """STEADY differs a little and always, STRONG much and seldom, NEGATIVE the other way."""
    rng = np.random.default_rng(0)
    positive = 0.1 * rng.random((PAIRS, 2 * WIDTH))
    negative = 0.1 * rng.random((PAIRS, 2 * WIDTH))
    positive[:, STEADY], negative[:, STEADY] = 1 + 0.1 * rng.random(PAIRS), 0
    positive[:, STRONG] = np.where(np.arange(PAIRS) < 4, 60, 0)
    negative[:, STRONG] = 0
    positive[:, NEGATIVE], negative[:, NEGATIVE] = 0, 0.5 + 0.3 * rng.random(PAIRS)
    positive[:, SILENT] = negative[:, SILENT] = 0
    side = Activations(torch.ones(PAIRS, WIDTH), torch.arange(PAIRS + 1), Site(1))
    return MethodInputs(
        PairActivations(side, side),
        "tiny",
        "f",
        codes=PairCodes.from_dense(positive, negative),
        sae=load_sae(mirror_sae(d_in=WIDTH, gain=0.5)),
    )


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_chooses_its_own_first_feature(criterion, inputs):
    vector = TopFeature(criterion)(inputs)
    scores = CRITERIA[criterion](inputs.codes)
    best = max(range(2 * WIDTH), key=lambda index: (abs(scores[index]), -index))
    (feature,) = vector.sae_features
    assert feature.index == best
    assert np.sign(feature.weight) == np.sign(scores[best])
    assert vector.method == f"top_feature_{criterion}"


def test_criteria_disagree_where_they_should(inputs):
    chosen = {name: TopFeature(name)(inputs).sae_features[0].index for name in CRITERIA}
    assert chosen["mean_difference"] == STRONG
    assert chosen["standardised_difference"] == STEADY
    assert chosen["auroc"] in (STEADY, NEGATIVE)


def test_the_vector_is_the_mean_difference_along_one_decoder_row(inputs):
    vector = TopFeature("mean_difference")(inputs)
    wanted = 6.0 * inputs.sae.decoder[STRONG]
    torch.testing.assert_close(vector.raw, wanted, rtol=1e-5, atol=1e-6)


def with_scores(inputs: MethodInputs, **scores: float) -> MethodInputs:
    output = np.full(2 * WIDTH, np.nan)
    for name, score in scores.items():
        output[
            {"steady": STEADY, "strong": STRONG, "negative": NEGATIVE, "silent": SILENT}[name]
        ] = score
    return replace(inputs, output_scores=output)


def test_output_score_chooses_the_highest_among_features_that_separate(inputs):
    top = TopFeature("output_score")
    given = with_scores(inputs, steady=0.2, strong=0.1, negative=0.7, silent=0.9)
    (feature,) = top(given).sae_features
    assert feature.index == NEGATIVE
    assert feature.weight == pytest.approx(inputs.codes.mean_delta[NEGATIVE])
    assert feature.weight < 0
    assert top(with_scores(inputs, strong=0.1)).sae_features[0].index == STRONG


def test_only_the_best_separating_features_may_be_chosen_for_their_output(inputs):
    given = with_scores(inputs, steady=0.2, strong=0.9, negative=0.1)
    assert TopFeature("output_score", n_candidates=2)(given).sae_features[0].index == STEADY
    assert TopFeature("output_score", n_candidates=3)(given).sae_features[0].index == STRONG


def test_output_scores_that_are_missing_or_foreign_are_sentences(inputs):
    top = TopFeature("output_score")
    for lacking in (inputs, with_scores(inputs)):
        with pytest.raises(ConfigError, match=r"top_feature_output_score needs output scores"):
            top(lacking)
    with pytest.raises(MismatchError, match=r"of 5 features and the SAE has 12"):
        top(replace(inputs, output_scores=np.ones(5)))
    with pytest.raises(DataError, match=r"no feature that has an output score differs"):
        top(with_scores(inputs, silent=0.5))


def test_an_unknown_criterion_is_named_with_the_closest_known_one():
    with pytest.raises(ConfigError, match=r"criterion: 'output_scores' .* did you mean 'output_sc"):
        TopFeature("output_scores")
    with pytest.raises(ConfigError, match=r"n_candidates: 0 features hold no choice"):
        TopFeature("output_score", n_candidates=0)
