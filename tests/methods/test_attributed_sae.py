"""Attributed SAE regression picks what moves the model most for its cost, by hand and by numpy."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods import MethodInputs, RandomDirection
from saesteer.methods.attributed_sae import AttributedSae
from saesteer.methods.attribution import FisherMetric
from saesteer.methods.attribution.objective import Contrast, Linearisation, SteeringObjective
from saesteer.methods.features import PairCodes
from saesteer.methods.registry import build_method, method_entries, method_entry
from saesteer.models import Site, encode_statements
from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.saes import load_sae
from saesteer.steering import DivergenceMeter, SteeringVector, TeacherForced
from saesteer.utils.errors import ConfigError, DataError, MismatchError

WIDTH, PAIRS = 16, 24
LOOSE = {"max_firing": 1.0}
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
        return without(activations, sae, objective=StubObjective(matrix @ mean, matrix), **rest)

    module.inputs_of = inputs_of  # type: ignore[attr-defined]
    return module


contract = load_contract()
test_settings_cannot_be_changed = contract.test_it_is_a_method_whose_settings_cannot_be_changed
test_a_unit_direction = contract.test_it_gives_a_unit_direction_at_the_pairs_site
test_it_says_where_it_came_from = contract.test_it_says_where_it_came_from
test_it_changes_nothing_it_was_given = contract.test_it_changes_nothing_it_was_given
test_one_pair_is_enough = contract.test_one_pair_is_enough
test_a_vector_survives_its_file = contract.test_a_vector_survives_its_file
test_it_points_to_the_positive_side = contract.test_it_points_to_the_positive_side
test_the_sign_flips_with_the_sides = contract.test_the_sign_flips_with_the_sides
test_not_numbers = contract.test_activations_that_are_not_numbers_are_a_sentence
test_it_is_the_sum_of_its_rows = (
    contract.test_a_vector_of_features_is_the_sum_of_its_weighted_decoder_rows
)
test_it_needs_an_sae = contract.test_a_method_on_features_says_that_it_needs_an_sae
test_the_length_at_maximum = (
    contract.test_the_length_at_maximum_is_every_feature_at_its_measured_maximum
)


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(d_in=WIDTH, gain=0.9))


@pytest.fixture(scope="module")
def inputs(sae) -> MethodInputs:
    return contract.inputs_of(contract.read(PAIRS), sae)


@pytest.fixture(
    params=[
        AttributedSae(selection=LOOSE),
        AttributedSae(n_features=5, rounds=0, signs="tied", selection=LOOSE),
        AttributedSae(n_features=8, rounds=3, candidates="any"),
    ],
    ids=["free", "tied", "any"],
)
def method(request) -> AttributedSae:
    return request.param


@pytest.fixture
def named(method) -> tuple[str, AttributedSae]:
    return method.name, method


@pytest.fixture
def from_pairs(method) -> AttributedSae:
    return method


def test_the_same_inputs_give_the_same_vector(method, inputs, sae):
    again = contract.inputs_of(contract.read(PAIRS), sae)
    assert torch.equal(method(inputs).raw, method(again).raw)


def test_it_keeps_its_settings_and_the_target(method, inputs):
    settings = method(inputs).provenance["settings"]
    assert settings == {**asdict(method), "kl_target": 0.3}


def test_sides_that_do_not_differ_are_a_sentence(method, sae):
    side = contract.read(3).positive
    wanted = r"none of the 32 features is left|the two sides do not differ"
    with pytest.raises(DataError, match=wanted):
        method(contract.inputs_of(PairActivations(side, side), sae))


@dataclass(frozen=True)
class StubSae:
    """An SAE that is only its decoder."""

    decoder: torch.Tensor
    name: str = "stub"
    neuronpedia_id: str | None = None
    fingerprint: str = "s"


def made(decoder: np.ndarray, objective: Any, *, seed: int = 0, silent: int = 0) -> MethodInputs:
    """Inputs whose features differ between the sides, the last `silent` of them never firing."""
    rng = np.random.default_rng(seed)
    n = len(decoder)
    fires = (rng.random((2, PAIRS, n)) < 0.4) * (np.arange(n) < n - silent)
    codes = rng.exponential(size=(2, PAIRS, n)) * rng.uniform(0.2, 3, (2, 1, n)) * fires
    offsets = torch.arange(PAIRS + 1)
    values = [torch.tensor(side @ decoder, dtype=torch.float32) for side in codes]
    positive, negative = (Activations(v, offsets, Site(1)) for v in values)
    sae: Any = StubSae(torch.tensor(decoder, dtype=torch.float32))
    return MethodInputs(
        PairActivations(positive, negative),
        "tiny",
        "f",
        codes=PairCodes.from_dense(codes[0], codes[1]),
        sae=sae,
        objective=objective,
    )


def orthonormal(n: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def unlike(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A decoder of rows at all angles, a gain, and a metric far from the identity."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(WIDTH, WIDTH)) * np.geomspace(0.1, 3, WIDTH)
    return rng.normal(size=(n, WIDTH)), rng.normal(size=WIDTH), root @ root.T


def weights_of(vector) -> dict[int, float]:
    return {f.index: f.weight for f in vector.features}


@pytest.mark.parametrize("candidates", ["any", "clustered"])
@pytest.mark.parametrize("n_features", [1, 4, 9])
def test_on_orthonormal_rows_it_picks_the_largest_gains_and_weighs_by_them(candidates, n_features):
    decoder, (_, gain, _) = orthonormal(), unlike(3)
    given = made(decoder, StubObjective(gain, np.eye(WIDTH)), silent=4)
    method = AttributedSae(n_features, 1, 0.0, candidates=candidates, selection=LOOSE)
    fit = method.fit(given)
    allowed = np.arange(WIDTH) if fit.clusters is None else fit.clusters.kept_indices
    projected = decoder.astype(np.float32).astype(np.float64) @ gain
    best = sorted(allowed, key=lambda j: -abs(projected[j]))[:n_features]
    wanted = {int(j): pytest.approx(projected[j], rel=1e-4, abs=1e-6) for j in best}
    assert weights_of(fit.vector) == wanted
    assert [f.index for f in fit.vector.features] == best
    assert (candidates == "any") == (fit.clusters is None) == (fit.selection is None)


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ridge", [0.0, 0.5, 2.0])
def test_it_is_matching_pursuit_by_hand_in_the_damped_metric(seed, ridge):
    decoder, gain, matrix = unlike(40, seed)
    given = made(decoder, StubObjective(gain, matrix), seed=seed)
    damped = matrix + ridge * np.mean(np.diag(matrix)) * np.eye(WIDTH)
    vector = AttributedSae(6, 0, ridge, candidates="any")(given)
    wanted = by_hand(decoder.astype(np.float32).astype(np.float64), damped, gain, 6)
    assert weights_of(vector) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("n_features", [3, 32])
def test_only_clustered_candidates_that_fire_are_used_and_no_more_than_asked(n_features):
    decoder, gain, matrix = unlike(60)
    given = made(decoder, StubObjective(gain, matrix), silent=30)
    for signs in ("free", "tied"):
        method = AttributedSae(
            n_features, signs=signs, selection={**LOOSE, "n_features": 20}, clustering=ALL_KEPT
        )
        fit = method.fit(given)
        assert fit.clusters is not None
        chosen = weights_of(fit.vector)
        assert 0 < len(chosen) <= n_features
        assert set(chosen) <= set(fit.clusters.kept_indices.tolist()) <= set(range(30))
        cluster = dict(zip(fit.clusters.indices.tolist(), fit.clusters.labels, strict=True))
        assert all(f.cluster == cluster[f.index] for f in fit.vector.features)
    ablation = AttributedSae(32, candidates="any")(given)
    assert ablation.method == "attributed_any"
    assert {f.cluster for f in ablation.features} == {None}
    assert any(f.index >= 30 for f in ablation.features)


@pytest.mark.parametrize("name", sorted(method_entries()))
def test_a_vectors_file_names_the_method_as_a_comparison_does(name, inputs, tmp_path):
    if method_entry(name).kind == "prompt":
        pytest.skip("no vector")
    loose = {"selection": LOOSE} if name.startswith(("attributed", "clustered")) else {}
    method: Any = build_method(name, loose)
    method(inputs).save(tmp_path / "v.safetensors")
    assert SteeringVector.load(tmp_path / "v.safetensors").method == name


@pytest.mark.parametrize("seed", range(3))
def test_tied_weights_have_their_features_own_sign_and_fit_best_of_all_that_do(seed):
    decoder, gain, matrix = unlike(40, seed)
    given = made(decoder, StubObjective(gain, matrix), seed=seed)
    assert given.codes is not None
    strict = {"min_separation": 0.6}
    method = AttributedSae(6, signs="tied", selection=LOOSE, clustering=strict)
    fit = method.fit(given)
    assert fit.clusters is not None
    assert 0 < len(fit.clusters.kept_indices) < len(fit.clusters.indices)
    own = np.sign(given.codes.mean_delta)
    chosen = weights_of(fit.vector)
    assert chosen and len(chosen) <= 6
    assert all(np.sign(weight) == own[j] for j, weight in chosen.items())
    # No weight of its own sign can be changed so that the fit is better (Karush-Kuhn-Tucker).
    metric = matrix + np.mean(np.diag(matrix)) * np.eye(WIDTH)
    residual = np.linalg.solve(metric, gain) - fit.weights.direction_raw
    pull = decoder[fit.weights.indices] @ metric @ residual
    weights = fit.weights.weights
    np.testing.assert_allclose(pull[weights != 0], 0, atol=1e-5)
    assert (pull * own[fit.weights.indices] <= 1e-5).all()
    free = weights_of(AttributedSae(6, selection=LOOSE, clustering=strict)(given))
    assert any(np.sign(weight) != own[j] for j, weight in free.items())


def test_each_round_linearises_around_what_came_before_and_averages():
    decoder, gain, matrix = unlike(30)
    objective = StubObjective(gain, matrix, steered=np.linspace(-2, 2, WIDTH))
    given = made(decoder, objective)
    fits = [AttributedSae(8, rounds, 1.0, candidates="any").fit(given) for rounds in (1, 2)]
    mean = given.activations.deltas.double().mean(dim=0).numpy()
    np.testing.assert_allclose(objective.seen[0], mean)
    np.testing.assert_allclose(objective.seen[1], mean)
    np.testing.assert_allclose(objective.seen[2], fits[0].weights.direction_raw)
    assert [len(fit.rounds) for fit in fits] == [1, 2]
    assert fits[1].rounds == ({"statements": 2.0}, {"statements": 3.0})
    for rounds, fit in enumerate(fits, start=1):
        average = (gain + rounds * np.linspace(-2, 2, WIDTH)) / (rounds + 1)
        plain = made(decoder, StubObjective(average, matrix))
        alike = AttributedSae(8, 0, 1.0, candidates="any")(plain)
        torch.testing.assert_close(fit.vector.raw, alike.raw, rtol=1e-5, atol=1e-6)


def test_no_rounds_ask_nothing_but_the_gain_at_zero():
    decoder, gain, matrix = unlike(30)
    objective = StubObjective(gain, matrix)
    fit = AttributedSae(8, 0, selection=LOOSE).fit(made(decoder, objective))
    assert objective.seen == []
    assert fit.rounds == ()
    assert fit.vector.features


def test_a_feature_without_decoder_row_is_never_picked_by_the_ablation():
    decoder, gain, matrix = unlike(30)
    decoder[::2] = 0
    vector = AttributedSae(32, candidates="any")(made(decoder, StubObjective(gain, matrix)))
    assert vector.features and all(f.index % 2 for f in vector.features)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_features": 0},
        {"rounds": -1},
        {"ridge": -0.1},
        {"ridge": float("nan")},
        {"ridge": float("inf")},
        {"signs": "both"},
        {"candidates": "all"},
        {"candidates": "any", "signs": "tied"},
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_sentence(settings):
    with pytest.raises(ConfigError, match=r"^attributed_sae: [^\n]*\.$"):
        AttributedSae(**settings)


def test_what_is_missing_or_does_not_fit_is_a_sentence(inputs):
    decoder, gain, matrix = unlike(30)
    with pytest.raises(ConfigError, match=r"attributed_sae needs to know .* give an objective"):
        AttributedSae()(replace(inputs, objective=None))
    with pytest.raises(ConfigError, match=r"max_fires|unexpected|unknown|not known"):
        AttributedSae(selection={"criterion": "fires"})(made(decoder, StubObjective(gain, matrix)))
    other = StubObjective(np.ones(8), np.eye(8))
    with pytest.raises(MismatchError, match=r"width 16 is not the target's 8"):
        AttributedSae(selection=LOOSE)(made(decoder, other))
    thin = StubObjective(gain, np.outer(gain, gain))
    with pytest.raises(ConfigError, match=r"ridge: with 0 the Fisher metric .* has no inverse"):
        AttributedSae(ridge=0.0, selection=LOOSE)(made(decoder, thin))
    for bad in (np.zeros(WIDTH), np.full(WIDTH, np.nan)):
        with pytest.raises(DataError, match=r"target: "):
            AttributedSae(selection=LOOSE)(made(decoder, StubObjective(bad, matrix)))


def test_on_a_real_objective_it_moves_the_training_texts_more_than_chance(tiny_llama, mirror_sae):
    higher = ("i like the little house", "the water is good and so is the bread", "help me")
    lower = ("i hate the hill", "go away", "i will not help anyone on the hill")
    answers = [f"the little house number {i} stands on the hill by the water" for i in range(9)]

    def rows(texts):
        return encode_statements(tiny_llama.tokenizer, texts, "tell me about the house")

    site = Site(1)
    given = contract.read(PAIRS)
    positive, negative = (
        Activations(torch.cat([side.values, side.values.flip(1)], dim=1), side.offsets, site)
        for side in (given.positive, given.negative)
    )
    inputs = contract.inputs_of(PairActivations(positive, negative), load_sae(mirror_sae()))
    objective = SteeringObjective(
        [Contrast("statements", TeacherForced(tiny_llama, rows([*higher, *lower]), site=site))],
        DivergenceMeter(tiny_llama, rows(answers), site=site),
        FisherMetric(np.eye(32), 1, 1),
        lambda raw: replace(inputs.vector(raw, "x"), model_fingerprint=None),
        kl_target=0.02,
    )
    inputs = replace(inputs, objective=objective)

    def effect(vector) -> float:
        return objective.around(vector.raw.double().numpy()).effects["statements"]

    few, dense = (effect(AttributedSae(n, 1, candidates="any")(inputs)) for n in (6, 32))
    chance = max(abs(effect(RandomDirection(draw)(inputs))) for draw in range(8))
    assert dense > few > 1.2 * chance > 0
