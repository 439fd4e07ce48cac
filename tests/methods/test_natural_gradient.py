"""The natural gradient, by numpy."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods import Method, MethodInputs, NaturalGradient
from saesteer.methods.attribution import FisherMetric
from saesteer.methods.attribution.objective import Linearisation
from saesteer.models import Site
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, SteeringError

WIDTH, PAIRS = 12, 6


@dataclass
class Known:
    """Stands for an objective: known gains and a known metric."""

    zero: np.ndarray
    steered: np.ndarray
    matrix: np.ndarray
    seen: list[np.ndarray] = field(default_factory=list)

    @property
    def metric(self) -> FisherMetric:
        return FisherMetric(self.matrix, 1, 1)

    @property
    def at_zero(self) -> Linearisation:
        return Linearisation(self.zero, {})

    def around(self, raw: np.ndarray) -> Linearisation:
        self.seen.append(raw)
        return Linearisation(self.steered, {})


def load_contract() -> Any:
    """Return a copy of the contract's module whose inputs have an objective along the delta."""
    place = Path(__file__).with_name("test_methods.py")
    spec = importlib.util.spec_from_file_location("methods_contract", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    without = module.inputs_of

    def inputs_of(activations: PairActivations, sae: Any, **rest: Any) -> MethodInputs:
        mean = activations.deltas.double().mean(dim=0).numpy()
        matrix = np.diag(np.linspace(0.5, 2, len(mean)))
        gain = (matrix + np.mean(np.diag(matrix)) * np.eye(len(mean))) @ mean
        return without(activations, sae, objective=Known(gain, gain, matrix), **rest)

    module.inputs_of = inputs_of  # type: ignore[attr-defined]
    return module


contract = load_contract()
test_settings_cannot_be_changed = contract.test_it_is_a_method_whose_settings_cannot_be_changed
test_a_unit_direction = contract.test_it_gives_a_unit_direction_at_the_pairs_site
test_it_says_where_it_came_from = contract.test_it_says_where_it_came_from
test_it_keeps_the_settings_that_made_it = contract.test_it_keeps_the_settings_that_made_it
test_strength_has_its_unit = contract.test_strength_has_its_unit
test_the_same_inputs_give_the_same_vector = contract.test_the_same_inputs_give_the_same_vector
test_it_changes_nothing_it_was_given = contract.test_it_changes_nothing_it_was_given
test_one_pair_is_enough = contract.test_one_pair_is_enough
test_a_vector_survives_its_file = contract.test_a_vector_survives_its_file
test_it_points_to_the_positive_side = contract.test_it_points_to_the_positive_side
test_the_sign_flips_with_the_sides = contract.test_the_sign_flips_with_the_sides
test_no_difference = contract.test_sides_that_do_not_differ_are_a_sentence
test_not_numbers = contract.test_activations_that_are_not_numbers_are_a_sentence


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=contract.WIDTH, gain=0.9))


@pytest.fixture(scope="module")
def inputs(sae) -> MethodInputs:
    return contract.inputs_of(contract.read(contract.PAIRS), sae)


@pytest.fixture
def method() -> NaturalGradient:
    return NaturalGradient()


@pytest.fixture
def from_pairs(method) -> NaturalGradient:
    return method


@pytest.fixture
def named(method) -> tuple[str, NaturalGradient]:
    return "natural_gradient", method


def known(seed: int = 0, rank: int = WIDTH) -> Known:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(WIDTH, rank))
    return Known(rng.normal(size=WIDTH), rng.normal(size=WIDTH), root @ root.T)


def inputs_of(objective: Any) -> MethodInputs:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.arange(PAIRS + 1) * 2
    sides = [
        Activations(torch.randn(2 * PAIRS, WIDTH, generator=generator), offsets, Site(1))
        for _ in range(2)
    ]
    pairs = PairActivations(sides[0], sides[1])
    return MethodInputs(pairs, "tiny", "f", name="mine", objective=objective)


@pytest.mark.parametrize("ridge", [0.0, 1.0, 3.0])
def test_it_solves_the_damped_metric_for_the_mean_gain(ridge):
    objective = known()
    given = inputs_of(objective)
    vector = NaturalGradient(ridge=ridge)(given)
    damped = objective.matrix + ridge * np.mean(np.diag(objective.matrix)) * np.eye(WIDTH)
    wanted = np.linalg.inv(damped) @ ((objective.zero + objective.steered) / 2)
    cosine = vector.direction.double().numpy() @ wanted / np.linalg.norm(wanted)
    assert cosine == pytest.approx(1, abs=1e-6)
    delta = given.deltas.double().mean(dim=0).numpy()
    assert vector.norm == pytest.approx(float(np.linalg.norm(delta)), rel=1e-5)
    np.testing.assert_allclose(objective.seen[0], delta)


def test_without_rounds_the_gain_at_zero_decides_alone():
    objective = known()
    vector = NaturalGradient(rounds=0)(inputs_of(objective))
    assert objective.seen == []
    damped = objective.matrix + np.mean(np.diag(objective.matrix)) * np.eye(WIDTH)
    wanted = np.linalg.solve(damped, objective.zero)
    cosine = vector.direction.double().numpy() @ wanted / np.linalg.norm(wanted)
    assert cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_no_direction_of_equal_cost_gains_more(seed):
    objective = known(seed)
    raw = NaturalGradient(rounds=0, ridge=0.0)(inputs_of(objective)).raw.double().numpy()

    def gain_at_unit_cost(v: np.ndarray) -> float:
        return float(objective.zero @ v / np.sqrt(v @ objective.matrix @ v))

    best = gain_at_unit_cost(raw)
    others = np.random.default_rng(9).normal(size=(200, WIDTH))
    assert max(map(gain_at_unit_cost, [*others, objective.zero])) < best
    assert best == pytest.approx(
        float(np.sqrt(objective.zero @ np.linalg.solve(objective.matrix, objective.zero))),
        rel=1e-4,
    )


def test_it_is_a_method_that_says_what_made_it():
    method = NaturalGradient(ridge=2.0)
    assert isinstance(method, Method)
    vector = method(inputs_of(known()))
    assert (vector.method, vector.name, vector.sae_features) == ("natural_gradient", "mine", ())
    assert vector.provenance["settings"] == {"rounds": 1, "ridge": 2.0}


@pytest.mark.parametrize(
    "settings",
    [{"rounds": 2}, {"rounds": -1}, {"ridge": -1}, {"ridge": np.nan}, {"ridge": np.inf}],
    ids=str,
)
def test_bad_settings_are_one_sentence(settings):
    with pytest.raises(ConfigError, match=r"^natural_gradient: [^\n]*\.$"):
        NaturalGradient(**settings)


def test_what_is_missing_or_says_nothing_is_a_sentence():
    with pytest.raises(ConfigError, match=r"natural_gradient needs to know .* give an objective"):
        NaturalGradient()(inputs_of(None))
    thin = known(rank=2)
    with pytest.raises(ConfigError, match=r"ridge: with 0 the Fisher metric .* has no inverse"):
        NaturalGradient(ridge=0.0)(inputs_of(thin))
    flat = Known(np.zeros(WIDTH), np.zeros(WIDTH), np.eye(WIDTH))
    with pytest.raises(SteeringError, match=r"is zero, so it has no direction"):
        NaturalGradient()(inputs_of(flat))
