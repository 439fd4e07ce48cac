"""Attributed SAE regression picks what moves the model most for its cost, by hand and by numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods import AttributedSAE, FitContext, NaturalGradient
from saesteer.methods.objective import FisherMetric, Linearisation
from saesteer.models import Site
from saesteer.models.reading import Activations, PairActivations
from saesteer.utils.errors import ConfigError, DataError, SteeringError

WIDTH, PAIRS = 16, 24
SITE = Site(1)
LOOSE = {"max_firing": 1.0}
# Every feature may be picked that fires at all.
ANY = {"max_firing": 1.0, "min_firing": 0.0}
# No cluster is thrown away.
ALL_KEPT = {"min_separation": 0.0}


@dataclass
class StubObjective:
    """Stands for an objective: known gains and a known metric."""

    zero: np.ndarray
    matrix: np.ndarray
    steered: np.ndarray | None = None
    kl_target: float = 0.3
    seen: list[np.ndarray] = field(default_factory=list)

    @property
    def metric(self) -> FisherMetric:
        return FisherMetric(self.matrix, 100, 100)

    @property
    def at_zero(self) -> Linearisation:
        return Linearisation(self.zero, {"statements": 0.0})

    def around(self, raw: np.ndarray) -> Linearisation:
        self.seen.append(raw)
        gain = self.zero if self.steered is None else self.steered
        return Linearisation(gain, {"statements": float(len(self.seen))}, 0.2, -0.3)


@dataclass(frozen=True)
class StubSae:
    """An SAE that is only its decoder."""

    decoder: torch.Tensor
    name: str = "stub"
    write_site: Site = SITE
    neuronpedia_id: str | None = None
    fingerprint: str = "s"
    model_fingerprint: str | None = None

    @property
    def d_sae(self) -> int:
        return len(self.decoder)

    @property
    def d_in(self) -> int:
        return self.decoder.shape[1]


@pytest.fixture
def made(given_codes):
    """Return a function to features that differ between the sides, the last few never firing."""

    def make(decoder: np.ndarray, objective: Any, *, seed: int = 0, silent: int = 0) -> FitContext:
        rng = np.random.default_rng(seed)
        n = len(decoder)
        fires = (rng.random((2, PAIRS, n)) < 0.4) * (np.arange(n) < n - silent)
        codes = rng.exponential(size=(2, PAIRS, n)) * rng.uniform(0.2, 3, (2, 1, n)) * fires
        sae: Any = StubSae(torch.tensor(decoder, dtype=torch.float32))
        offsets = torch.arange(PAIRS + 1)
        sides = [
            Activations(torch.tensor(side @ decoder, dtype=torch.float32), offsets, Site(1))
            for side in codes
        ]
        given = given_codes(*codes, sae, objective=objective)
        given.activations = PairActivations(sides[0], sides[1])
        return given

    return make


def unlike(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A decoder of rows at all angles, a gain, and a metric far from the identity."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(WIDTH, WIDTH)) * np.geomspace(0.1, 3, WIDTH)
    return rng.normal(size=(n, WIDTH)), rng.normal(size=WIDTH), root @ root.T


def weights_of(vector) -> dict[int, float]:
    return {f.index: f.weight for f in vector.sae_features}


def by_hand(decoder, metric, gain, n_features) -> dict[int, float]:
    """Orthogonal matching pursuit in a metric, written out."""
    target = np.linalg.inv(metric) @ gain
    chosen: list[int] = []
    weights = np.zeros(0)
    for _ in range(n_features):
        residual = target - (weights @ decoder[chosen] if chosen else 0)
        fits = [abs(d @ metric @ residual) / np.sqrt(d @ metric @ d) for d in decoder]
        chosen.append(max(set(range(len(decoder))) - set(chosen), key=lambda j: fits[j]))
        rows = decoder[chosen]
        weights = np.linalg.solve(rows @ metric @ rows.T, rows @ metric @ target)
    return dict(zip(chosen, weights.tolist(), strict=True))


@pytest.mark.parametrize(("seed", "ridge"), [(0, 0.0), (1, 0.5)])
def test_it_is_matching_pursuit_by_hand_in_the_damped_metric(seed, ridge, made):
    decoder, gain, matrix = unlike(40, seed)
    given = made(decoder, StubObjective(gain, matrix), seed=seed)
    damped = matrix + ridge * np.mean(np.diag(matrix)) * np.eye(WIDTH)
    vector = AttributedSAE(6, 0, ridge, selection=ANY).fit_in(given).vector_
    wanted = by_hand(decoder.astype(np.float32).astype(np.float64), damped, gain, 6)
    assert weights_of(vector) == pytest.approx(wanted, rel=1e-4)


def test_only_candidates_that_fire_are_used_and_no_more_than_asked(made):
    decoder, gain, matrix = unlike(60)
    given = made(decoder, StubObjective(gain, matrix), silent=30)
    few = {**LOOSE, "n_features": 20}
    ways: list[dict[str, Any]] = [
        {"selection": LOOSE},
        {"candidates": "clustered", "selection": few, "clustering": ALL_KEPT},
        {"candidates": "clustered", "selection": few, "clustering": ALL_KEPT, "signs": "tied"},
    ]
    for how in ways:
        fit = AttributedSAE(3, **how).fit_in(given)
        chosen = weights_of(fit.vector_)
        assert 0 < len(chosen) <= 3
        assert set(chosen) <= set(fit.clusters_.kept_indices.tolist()) <= set(range(30))
        cluster = dict(zip(fit.clusters_.indices.tolist(), fit.clusters_.labels, strict=True))
        assert all(f.cluster == cluster[f.index] for f in fit.vector_.sae_features)
        # What was offered is not clustered where it is the picked ones that are.
        assert len(fit.clusters_.indices) == (len(chosen) if how["selection"] is LOOSE else 20)


def test_tied_weights_have_their_features_own_sign_and_fit_best_of_all_that_do(made):
    decoder, gain, matrix = unlike(40)
    given = made(decoder, StubObjective(gain, matrix))
    strict = {"min_separation": 0.6}
    stages: Any = {"candidates": "clustered", "selection": LOOSE, "clustering": strict}
    fit = AttributedSAE(6, signs="tied", **stages).fit_in(given)
    assert 0 < len(fit.clusters_.kept_indices) < len(fit.clusters_.indices)
    own = np.sign(given.codes.mean_delta)
    chosen = weights_of(fit.vector_)
    assert chosen and len(chosen) <= 6
    assert all(np.sign(weight) == own[j] for j, weight in chosen.items())
    # No weight of its own sign can be changed so that the fit is better (Karush-Kuhn-Tucker).
    metric = matrix + np.mean(np.diag(matrix)) * np.eye(WIDTH)
    residual = np.linalg.solve(metric, gain) - fit.weights_.direction_raw
    pull = decoder[fit.weights_.indices] @ metric @ residual
    weights = fit.weights_.weights
    np.testing.assert_allclose(pull[weights != 0], 0, atol=1e-5)
    assert (pull * own[fit.weights_.indices] <= 1e-5).all()
    free = weights_of(AttributedSAE(6, **stages).fit_in(given).vector_)
    assert any(np.sign(weight) != own[j] for j, weight in free.items())


def test_each_round_linearises_around_what_came_before_and_averages(made):
    decoder, gain, matrix = unlike(30)
    objective = StubObjective(gain, matrix, steered=np.linspace(-2, 2, WIDTH))
    given = made(decoder, objective)
    fits = [AttributedSAE(8, rounds, 1.0, selection=ANY).fit_in(given) for rounds in (1, 2)]
    unsteered = AttributedSAE(8, 0, 1.0, selection=ANY).fit_in(given).weights_.direction_raw
    np.testing.assert_allclose(objective.seen[0], unsteered)
    np.testing.assert_allclose(objective.seen[1], unsteered)
    np.testing.assert_allclose(objective.seen[2], fits[0].weights_.direction_raw)
    assert [len(fit.rounds_) for fit in fits] == [1, 2]
    assert fits[1].rounds_ == ({"statements": 2.0}, {"statements": 3.0})
    for rounds, fit in enumerate(fits, start=1):
        average = (gain + rounds * np.linspace(-2, 2, WIDTH)) / (rounds + 1)
        plain = made(decoder, StubObjective(average, matrix))
        alike = AttributedSAE(8, 0, 1.0, selection=ANY).fit_in(plain).vector_
        torch.testing.assert_close(fit.vector_.raw, alike.raw, rtol=1e-5, atol=1e-6)

    # A feature without decoder row is never picked.
    decoder[::2] = 0
    given = made(decoder, StubObjective(gain, matrix))
    vector = AttributedSAE(32, selection=ANY).fit_in(given).vector_
    assert vector.sae_features and all(f.index % 2 for f in vector.sae_features)


@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_the_natural_gradient_is_the_target_by_hand(ridge, made):
    decoder, gain, matrix = unlike(30)
    objective = StubObjective(gain, matrix, steered=np.linspace(-2, 2, WIDTH))
    given = made(decoder, objective)
    vector = NaturalGradient(ridge=ridge).fit_in(given).vector_
    damped = matrix + ridge * np.mean(np.diag(matrix)) * np.eye(WIDTH)
    wanted = np.linalg.solve(damped, (gain + np.linspace(-2, 2, WIDTH)) / 2)
    cosine = vector.direction.double().numpy() @ wanted / np.linalg.norm(wanted)
    assert cosine == pytest.approx(1, abs=1e-6)
    assert vector.norm == pytest.approx(float(np.linalg.norm(given.mean_delta)), rel=1e-5)
    first = NaturalGradient(0, ridge).fit_in(given).vector_
    np.testing.assert_allclose(objective.seen[0], first.raw, rtol=1e-4, atol=1e-6)


def test_an_objective_that_says_nothing_is_a_sentence(made):
    decoder, gain, matrix = unlike(30)
    thin = made(decoder, StubObjective(gain, np.outer(gain, gain)))
    for method in (AttributedSAE(ridge=0.0, selection=LOOSE), NaturalGradient(ridge=0.0)):
        with pytest.raises(ConfigError, match=r"ridge: with 0 the Fisher metric .* has no inverse"):
            method.fit_in(thin)
    flat = made(decoder, StubObjective(np.zeros(WIDTH), matrix))
    with pytest.raises(DataError, match=r"target: "):
        AttributedSAE(selection=LOOSE).fit_in(flat)
    with pytest.raises(SteeringError, match=r"is zero, so it has no direction"):
        NaturalGradient().fit_in(flat)
