"""One contract that every way to a vector passes, and what each of them is by hand."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods import (
    CaaAnswers,
    ClusteredSae,
    DifferenceInMeans,
    LogisticProbe,
    MeanDecodedDelta,
    Method,
    MethodInputs,
    Pca,
    RandomDirection,
    RandomFeatures,
    TargetAtoms,
    TopFeature,
)
from saesteer.methods.features import (
    CRITERIA,
    REGRESSIONS,
    cluster_features,
    encode_pairs,
    fit_weights,
    select_features,
)
from saesteer.models import Site
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.saes import load_sae
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError, SaesteerError, SteeringError

WIDTH = 16
PAIRS = 20
SITE = Site(1)
# A mirror's features fire on every text.
LOOSE = {"max_firing": 1.0}
TOP_FEATURES = [TopFeature(criterion) for criterion in (*CRITERIA, "output_score")]
FROM_PAIRS: dict[str, Method] = {
    "clustered_sae": ClusteredSae(LOOSE),
    "difference_in_means": DifferenceInMeans(),
    "caa_answers": CaaAnswers(),
    "pca": Pca("pca_center"),
    "logistic_probe": LogisticProbe(),
    "mean_decoded_delta": MeanDecodedDelta(),
    "target_atoms": TargetAtoms(),
    **{method.name: method for method in TOP_FEATURES},
}
NULL: dict[str, Method] = {
    "random_direction": RandomDirection(),
    "random_features": RandomFeatures(n_features=5),
}
METHODS = [*FROM_PAIRS.items(), ("pca", Pca()), *NULL.items()]


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=WIDTH, gain=0.9))


def read(pairs: int, seed: int = 0) -> PairActivations:
    """Pairs of texts of several tokens, whose sides differ along one direction and by noise."""
    rng = np.random.default_rng(seed)
    direction = np.linspace(-1, 1, WIDTH)
    sides = []
    for sign in (1, -1):
        counts = rng.integers(1, 6, pairs)
        values = rng.normal(size=(counts.sum(), WIDTH)) + sign * direction
        offsets = torch.tensor(np.concatenate([[0], counts.cumsum()]))
        sides.append(Activations(torch.tensor(values, dtype=torch.float32), offsets, SITE))
    return PairActivations(sides[0], sides[1])


def inputs_of(activations: PairActivations, sae, **rest) -> MethodInputs:
    given: dict[str, Any] = {
        "answers": read(activations.positive.n_texts, seed=1),
        "output_scores": np.linspace(0.1, 0.9, 2 * WIDTH),
    }
    return MethodInputs(
        activations,
        model="tiny",
        model_fingerprint="f" * 64,
        name="mine",
        codes=encode_pairs(sae, activations),
        sae=sae,
        **{**given, **rest},
    )


@pytest.fixture(scope="module")
def inputs(sae) -> MethodInputs:
    return inputs_of(read(PAIRS), sae)


def other_way_round(given: PairActivations) -> PairActivations:
    return PairActivations(given.negative, given.positive, given.pooling)


def swapped(inputs: MethodInputs, sae) -> MethodInputs:
    assert inputs.answers is not None
    answers = other_way_round(inputs.answers)
    return inputs_of(other_way_round(inputs.activations), sae, answers=answers)


@pytest.fixture(params=METHODS, ids=lambda named: named[0])
def named(request) -> tuple[str, Method]:
    return request.param


@pytest.fixture
def method(named) -> Method:
    return named[1]


@pytest.fixture(params=FROM_PAIRS.values(), ids=list(FROM_PAIRS))
def from_pairs(request) -> Method:
    return request.param


def test_it_is_a_method_whose_settings_cannot_be_changed(method):
    assert isinstance(method, Method)
    assert hash(repr(method))
    for setting in (*asdict(method), "draw"):  # type: ignore[call-overload]
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(method, setting, 3)


def test_it_gives_a_unit_direction_at_the_pairs_site(method, inputs):
    vector = method(inputs)
    assert isinstance(vector, SteeringVector)
    assert vector.site == SITE
    assert vector.d_model == WIDTH
    assert float(vector.direction.norm()) == pytest.approx(1, abs=1e-6)
    assert vector.direction.dtype == torch.float32


def test_it_says_where_it_came_from(named, inputs):
    name, method = named
    vector = method(inputs)
    assert vector.model == "tiny"
    assert vector.model_fingerprint == "f" * 64
    assert vector.method == name
    own = {"random_direction": "random 0", "random_features": "random features 0"}
    assert vector.name == own.get(name, "mine")
    last = replace(inputs, activations=replace(inputs.activations, pooling="last"))
    read_at = [vector.read_positions, method(last).read_positions]
    if name == "caa_answers":
        assert read_at == ["answer letter token"] * 2
    else:
        assert read_at == ["statement tokens, mean", "statement tokens, last"]


def test_it_keeps_the_settings_that_made_it(method, inputs):
    if not isinstance(method, DifferenceInMeans | RandomDirection):
        assert method(inputs).provenance["settings"] == asdict(method)  # type: ignore[call-overload]


def test_strength_has_its_unit(method, inputs):
    given = inputs.activations
    tokens = torch.cat([given.positive.values, given.negative.values])
    assert method(inputs).residual_norm == pytest.approx(float(tokens.norm(dim=1).mean()))


def test_the_same_inputs_give_the_same_vector(method, inputs, sae):
    again = inputs_of(read(PAIRS), sae)
    assert torch.equal(method(inputs).raw, method(again).raw)


def test_it_changes_nothing_it_was_given(method, inputs):
    before = inputs.activations.positive.values.clone(), inputs.codes.positive.copy()
    method(inputs)
    assert torch.equal(inputs.activations.positive.values, before[0])
    assert (inputs.codes.positive != before[1]).nnz == 0


def test_one_pair_is_enough(method, sae):
    vector = method(inputs_of(read(1), sae))
    assert float(vector.direction.norm()) == pytest.approx(1, abs=1e-6)


def test_a_vector_survives_its_file(method, inputs, tmp_path):
    vector = method(inputs)
    back = SteeringVector.load(vector.save(tmp_path / "vector.safetensors"))
    assert torch.equal(back.direction, vector.direction)
    assert back.sae_features == vector.sae_features
    assert back.norm == vector.norm


def test_it_points_to_the_positive_side(from_pairs, inputs):
    vector = from_pairs(inputs)
    assert float(vector.direction @ inputs.deltas.mean(dim=0)) > 0
    # A single feature is as good a direction as one coordinate among sixteen can be.
    share = 0.6 if vector.method.startswith("top_feature") else 0.9
    assert float((inputs.deltas @ vector.direction > 0).float().mean()) > share


def test_the_sign_flips_with_the_sides(from_pairs, inputs, sae):
    vector, other = from_pairs(inputs), from_pairs(swapped(inputs, sae))
    torch.testing.assert_close(other.raw, -vector.raw, rtol=1e-4, atol=1e-5)
    weights = {f.index: f.weight for f in vector.sae_features}
    assert {f.index: pytest.approx(-f.weight, rel=1e-4) for f in other.sae_features} == weights


def test_sides_that_do_not_differ_are_a_sentence(named, sae):
    name, method = named
    side = read(3).positive
    same = inputs_of(PairActivations(side, side), sae, answers=PairActivations(side, side))
    chooses = name in ("clustered_sae", "top_feature_output_score")
    wanted = r"no feature|none of the" if chooses else r"is zero, so it has no direction"
    with pytest.raises(SaesteerError if chooses else SteeringError, match=wanted):
        method(same)


def test_activations_that_are_not_numbers_are_a_sentence(method, sae):
    given = read(4)
    given.positive.values[2, 3] = float("nan")
    with pytest.raises(SaesteerError, match=r"finite"):
        method(inputs_of(given, sae, answers=given))


def test_a_vector_of_features_is_the_sum_of_its_weighted_decoder_rows(method, inputs, sae):
    vector = method(inputs)
    if vector.sae_features:
        rows = [feature.weight * sae.decoder[feature.index] for feature in vector.sae_features]
        torch.testing.assert_close(torch.stack(rows).sum(dim=0), vector.raw, rtol=1e-4, atol=1e-5)
        assert (vector.sae, vector.sae_fingerprint) == (sae.name, sae.fingerprint)
        sizes = [abs(feature.weight) for feature in vector.sae_features]
        assert sizes == sorted(sizes, reverse=True)


def test_a_method_on_features_says_that_it_needs_an_sae(named, inputs):
    name, method = named
    if method(inputs).sae_features:
        for lacking in (replace(inputs, codes=None), replace(inputs, sae=None)):
            with pytest.raises(ConfigError, match=rf"{name} works on SAE features; give an SAE"):
                method(lacking)


def test_pca_of_the_deltas_points_where_more_pairs_do(inputs, sae):
    vector, other = Pca()(inputs), Pca()(swapped(inputs, sae))
    assert float((inputs.deltas @ vector.direction > 0).float().mean()) >= 0.5
    torch.testing.assert_close(other.raw, -vector.raw, rtol=1e-4, atol=1e-5)


def test_difference_in_means_is_what_numpy_gives_by_hand(inputs):
    given = inputs.activations
    means = []
    for side in (given.positive, given.negative):
        values = side.values.numpy().astype(float)
        texts = [values[a:b].mean(axis=0) for a, b in pairwise(side.offsets.tolist())]
        means.append(np.mean(texts, axis=0))
    vector = DifferenceInMeans()(inputs)
    np.testing.assert_allclose(vector.raw.numpy(), means[0] - means[1], rtol=1e-4, atol=1e-6)
    assert vector.norm == pytest.approx(np.linalg.norm(means[0] - means[1]), rel=1e-5)
    assert vector.sae_features == ()


def test_random_directions_are_as_long_as_the_delta_and_nearly_orthogonal(sae):
    wide, generator = read(2), torch.Generator().manual_seed(0)
    sides = [
        Activations(torch.randn(len(s.values), 2048, generator=generator), s.offsets, SITE)
        for s in (wide.positive, wide.negative)
    ]
    inputs = MethodInputs(PairActivations(sides[0], sides[1]), "tiny", "f", seed=5)
    vectors = [RandomDirection(draw)(inputs) for draw in range(6)]
    length = float(inputs.deltas.mean(dim=0).norm())
    assert all(v.norm == pytest.approx(length, rel=1e-6) for v in vectors)
    directions = torch.stack([v.direction for v in vectors])
    overlap = (directions @ directions.T - torch.eye(6)).abs()
    # About 0.022 from 2048 dimensions at random; seven times that.
    assert float(overlap.max()) < 0.15
    assert float((directions @ inputs.deltas.mean(dim=0)).abs().max()) < 0.15 * length
    assert len({v.name for v in vectors}) == 6


def test_random_directions_depend_on_the_seed_and_the_draw_alone(inputs, sae):
    def direction(draw: int, seed: int, pairs: int = PAIRS) -> torch.Tensor:
        return RandomDirection(draw)(inputs_of(read(pairs), sae, seed=seed)).direction

    assert torch.equal(direction(3, 7), direction(3, 7, pairs=5))
    assert not torch.allclose(direction(3, 7), direction(4, 7))
    assert not torch.allclose(direction(3, 7), direction(3, 8))
    assert torch.isfinite(direction(0, 2**32 - 1)).all()


def test_clustered_sae_is_its_stages_called_one_by_one(inputs, sae):
    held_out = encode_pairs(sae, read(8, seed=1))
    given = replace(inputs, validation_codes=held_out)
    settings: list[dict[str, Any]] = [
        {**LOOSE, "n_features": 20},
        {"min_separation": 0.7},
        {"method": "ridge"},
    ]
    assert given.codes is not None
    fit = ClusteredSae(*settings).fit(given)

    decoder = sae.decoder.numpy()
    chosen = select_features(given.codes, **settings[0])
    clusters = cluster_features(given.codes, chosen, decoder, held_out=held_out, **settings[1])
    weights = fit_weights(
        given.deltas.numpy().astype(np.float64),
        decoder[clusters.kept_indices],
        indices=clusters.kept_indices,
        codes=given.codes,
        signs=clusters.kept_signs,
        **settings[2],
    )
    np.testing.assert_array_equal(fit.selection.indices, chosen.indices)
    np.testing.assert_array_equal(fit.clusters.labels, clusters.labels)
    np.testing.assert_allclose(fit.weights.weights, weights.weights)
    np.testing.assert_allclose(fit.vector.raw.numpy(), weights.direction_raw, rtol=1e-5, atol=1e-6)
    assert torch.equal(fit.vector.raw, ClusteredSae(*settings)(given).raw)


@pytest.mark.parametrize("method", REGRESSIONS)
def test_the_vector_is_the_sum_of_its_weighted_decoder_rows(method, inputs, sae):
    vector = ClusteredSae(LOOSE, regression={"method": method})(inputs)
    rows = [feature.weight * sae.decoder[feature.index] for feature in vector.sae_features]
    torch.testing.assert_close(torch.stack(rows).sum(dim=0), vector.raw, rtol=1e-4, atol=1e-5)
    assert all(feature.weight != 0 for feature in vector.sae_features)
    sizes = [abs(feature.weight) for feature in vector.sae_features]
    assert sizes == sorted(sizes, reverse=True)


def test_features_carry_cluster_and_description(inputs):
    described = replace(
        inputs, descriptions={index: f"feature {index}" for index in range(2 * WIDTH)}
    )
    fit = ClusteredSae(LOOSE).fit(described)
    cluster = dict(zip(fit.clusters.indices.tolist(), fit.clusters.labels.tolist(), strict=True))
    for feature in fit.vector.sae_features:
        assert feature.description == f"feature {feature.index}"
        assert feature.cluster == cluster[feature.index]
        assert feature.cluster in fit.clusters.kept
    assert ClusteredSae(LOOSE)(inputs).sae_features[0].description is None


def test_the_length_at_maximum_is_every_feature_at_its_measured_maximum(method, inputs, sae):
    largest = np.linspace(1, 3, 2 * WIDTH)
    vector = method(replace(inputs, max_activation=largest))
    rows = [
        np.sign(f.weight) * largest[f.index] * sae.decoder[f.index].numpy() for f in vector.sae_features
    ]
    length = float(np.linalg.norm(np.sum(rows, axis=0))) if rows else None
    assert vector.max_act == (None if length is None else pytest.approx(length, rel=1e-5))
    assert method(inputs).max_act is None


def test_the_vector_keeps_the_settings_that_made_it(inputs, sae):
    vector = ClusteredSae(LOOSE, regression={"ridge_alpha": 0.5})(inputs)
    assert vector.provenance["settings"] == {
        "selection": LOOSE,
        "clustering": {},
        "regression": {"ridge_alpha": 0.5},
    }
    assert (vector.sae, vector.sae_fingerprint) == (sae.name, sae.fingerprint)


def test_a_limit_on_density_needs_densities_and_uses_them(inputs):
    sparse = ClusteredSae({**LOOSE, "max_density": 0.5})
    with pytest.raises(ConfigError, match=r"max_density"):
        sparse(inputs)
    density = np.where(np.arange(2 * WIDTH) % 2, 0.9, 0.1)
    vector = sparse(replace(inputs, density=density))
    assert all(feature.index % 2 == 0 for feature in vector.sae_features)
