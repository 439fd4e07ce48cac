"""One contract that every way to a vector passes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from saesteer.methods import (
    CAA,
    PCA,
    AttributedSAE,
    BiPO,
    ClusteredSAE,
    DifferenceInMeans,
    FitContext,
    LogisticProbe,
    MeanDecodedDelta,
    Method,
    NaturalGradient,
    RandomDirection,
    RandomFeatures,
    SystemPrompt,
    TargetAtoms,
    TopFeature,
)
from saesteer.methods.objective import FisherMetric, Linearisation
from saesteer.methods.registry import METHODS, build_method
from saesteer.models import Site
from saesteer.models.reading import Activations, PairActivations, pool
from saesteer.saes import load_sae
from saesteer.steering.teacher_forced import Pass
from saesteer.utils.errors import SaesteerError

WIDTH, PAIRS = 16, 20
SITE = Site(1)
# A mirror's features fire on every text.
LOOSE = {"max_firing": 1.0}
# Every method that settings files know, in settings that suit so few pairs where its own do not.
FROM_PAIRS: dict[str, Any] = {
    name: build_method(name, {}) for name, entry in METHODS.items() if entry.kind != "prompt"
} | {
    "attributed_sae": AttributedSAE(selection=LOOSE),
    "attributed_tied": AttributedSAE(
        n_features=5, rounds=0, signs="tied", candidates="clustered", selection=LOOSE
    ),
    "clustered_sae": ClusteredSAE(LOOSE),
    "difference_in_means": DifferenceInMeans(),
    "natural_gradient": NaturalGradient(),
    "bipo": BiPO(epochs=2),
    "caa_answers": CAA(),
    "pca": PCA("pca_center"),
    "logistic_probe": LogisticProbe(),
    "mean_decoded_delta": MeanDecodedDelta(),
    "target_atoms": TargetAtoms(),
    "top_feature_auroc": TopFeature("auroc"),
    "top_feature_output_score": TopFeature("output_score"),
}
NULL: dict[str, Method] = {
    "random_direction": RandomDirection(),
    "random_features": RandomFeatures(n_features=5),
}


class AlongTheDelta:
    """Stands for an objective that gains most along the mean delta."""

    kl_target = 0.3

    def __init__(self, activations: PairActivations) -> None:
        mean = activations.deltas.double().mean(dim=0).numpy()
        self.metric = FisherMetric(np.diag(np.linspace(0.5, 2, len(mean))), 1, 1)
        self.at_zero = Linearisation(self.metric.damped() @ mean, {})

    def around(self, raw: np.ndarray) -> Linearisation:
        return self.at_zero


class LikelierAlong:
    """Stands for statements of a token each, likelier the further steering goes along their text's
    activation."""

    def __init__(self, activations: PairActivations, pairs: Sequence[int]) -> None:
        sides = (activations.positive, activations.negative)
        self._take(torch.cat([pool(side, "mean")[list(pairs)] for side in sides]))

    def _take(self, means: torch.Tensor) -> None:
        self.means, self.n_rows, self.scored = means, len(means), [1] * len(means)

    def subset(self, rows: Sequence[int]) -> LikelierAlong:
        part = copy(self)
        part._take(self.means[list(rows)])
        return part

    def open_passes(self, vector: Any, strength: float, unit: str) -> Any:
        offset = torch.zeros_like(self.means, requires_grad=True)
        added = offset if vector is None else offset + strength * vector.direction
        likelier = (self.means * added).sum(dim=1)
        rows = torch.arange(self.n_rows)
        logits = torch.stack([likelier, torch.zeros(self.n_rows)], dim=1)
        yield Pass(rows.tolist(), logits, torch.zeros_like(rows), rows), offset


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


def swapped(given: PairActivations) -> PairActivations:
    return PairActivations(given.negative, given.positive, given.pooling)


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=WIDTH, gain=0.9))


@pytest.fixture
def fit_on(given_of, sae):
    """Return a function from activations, and those of answers, to what methods are fitted on."""

    def make(activations: PairActivations, answers: PairActivations | None = None, **parts):
        given: dict[str, Any] = {
            "answers": answers or read(activations.positive.n_texts, seed=1),
            "output_scores": np.linspace(0.1, 0.9, 2 * WIDTH),
            "objective": AlongTheDelta(activations),
            "statements": partial(LikelierAlong, activations),
        }
        return given_of(activations, sae, **{**given, **parts})

    return make


@pytest.fixture
def given(fit_on) -> FitContext:
    return fit_on(read(PAIRS))


@pytest.fixture(params=[*FROM_PAIRS.items(), *NULL.items()], ids=lambda named: named[0])
def named(request) -> tuple[str, Method]:
    return request.param


def test_it_is_an_estimator_of_scikit_learn(given):
    method = AttributedSAE(n_features=5, selection=LOOSE)
    copy: Any = clone(method)
    assert copy is not method and copy.get_params() == method.get_params()
    assert not hasattr(copy, "vector_")
    assert copy.set_params(**method.get_params()) is copy
    assert copy.fit_in(given) is copy
    again: Any = clone(method)
    assert torch.equal(copy.vector_.raw, again.fit_in(given).vector_.raw)


def test_it_gives_a_unit_direction_that_says_where_it_came_from(named, given, fit_on):
    name, method = named
    vector = method.fit_in(given).vector_
    assert float(vector.direction.norm()) == pytest.approx(1, abs=1e-6)
    assert (vector.site, vector.d_model, vector.direction.dtype) == (SITE, WIDTH, torch.float32)
    assert (vector.model, vector.model_fingerprint, vector.method) == ("tiny", "f" * 64, name)
    own = {"random_direction": "random 0", "random_features": "random features 0"}
    assert vector.name == own.get(name, "mine")
    both = (given.activations.positive.values, given.activations.negative.values)
    assert vector.residual_norm == pytest.approx(float(torch.cat(both).norm(dim=1).mean()))
    where = "answer letter token" if name == "caa_answers" else "statement tokens, mean"
    assert vector.read_positions == where
    if method.get_params():
        settings = vector.provenance["settings"]
        assert isinstance(settings, dict)
        assert settings.items() >= method.get_params().items()
    if name in NULL:
        return
    # It points to the positive side and flips with the sides.
    pairs, answers = given.activations, read(PAIRS, seed=1)
    assert float(vector.direction @ pairs.deltas.mean(dim=0)) > 0
    # A single feature is as good a direction as one coordinate among sixteen can be.
    share = 0.6 if name.startswith("top_feature") else 0.9
    assert float((pairs.deltas @ vector.direction > 0).float().mean()) > share
    raw = vector.raw.clone()
    other = method.fit_in(fit_on(swapped(pairs), swapped(answers))).vector_
    torch.testing.assert_close(other.raw, -raw, rtol=1e-4, atol=1e-5)


def test_few_and_bad_activations(named, fit_on):
    _, method = named
    one = method.fit_in(fit_on(read(1))).vector_
    assert float(one.direction.norm()) == pytest.approx(1, abs=1e-6)
    side = read(3).positive
    same = PairActivations(side, side)
    with pytest.raises(SaesteerError, match=r"no feature|none of the|is zero|do not differ"):
        method.fit_in(fit_on(same, same))
    broken = read(4)
    broken.positive.values[2, 3] = float("nan")
    with pytest.raises(SaesteerError, match=r"finite"):
        method.fit_in(fit_on(broken, broken))


def test_a_vector_of_features_is_the_sum_of_its_weighted_decoder_rows(named, fit_on, sae):
    largest = np.linspace(1, 3, 2 * WIDTH)
    words = {index: f"feature {index}" for index in range(2 * WIDTH)}
    given = fit_on(read(PAIRS), max_activation=largest, descriptions=words)
    method = named[1].fit_in(given)
    features = method.vector_.sae_features
    assert method.features_.tolist() == [feature.index for feature in features]
    if not features:
        assert method.vector_.max_act is None
        return
    rows = torch.stack([feature.weight * sae.decoder[feature.index] for feature in features])
    torch.testing.assert_close(rows.sum(dim=0), method.vector_.raw, rtol=1e-4, atol=1e-5)
    assert (method.vector_.sae, method.vector_.sae_fingerprint) == (sae.name, sae.fingerprint)
    sizes = [abs(feature.weight) for feature in features]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) > 0
    assert all(feature.description == words[feature.index] for feature in features)
    peaks = [np.sign(f.weight) * largest[f.index] * sae.decoder[f.index].numpy() for f in features]
    assert method.vector_.max_act == pytest.approx(np.linalg.norm(np.sum(peaks, axis=0)), rel=1e-5)


def test_settings_files_name_a_method_as_its_vectors_do():
    for name in METHODS:
        method = build_method(name, {})
        assert isinstance(method, SystemPrompt) or method.name == name


def test_means_are_what_numpy_and_the_saes_reconstructions_give_by_hand(given, sae):
    means = []
    for side in (given.activations.positive, given.activations.negative):
        values = side.values.numpy().astype(float)
        texts = [values[a:b].mean(axis=0) for a, b in pairwise(side.offsets.tolist())]
        means.append(np.mean(texts, axis=0))
    vector = DifferenceInMeans().fit_in(given).vector_
    np.testing.assert_allclose(vector.raw.numpy(), means[0] - means[1], rtol=1e-4, atol=1e-6)
    assert vector.norm == pytest.approx(np.linalg.norm(means[0] - means[1]), rel=1e-5)

    means = [
        torch.stack([sae.reconstruct(side.text(i)).mean(dim=0) for i in range(PAIRS)]).mean(0)
        for side in (given.activations.positive, given.activations.negative)
    ]
    vector = MeanDecodedDelta().fit_in(given).vector_
    torch.testing.assert_close(vector.raw, means[0] - means[1], rtol=1e-4, atol=1e-5)
