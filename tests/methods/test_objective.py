"""The objective's derivatives are those of autograd by hand, and its contrasts count alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.evaluation import statement_log_likelihoods
from saesteer.methods.objective import FisherMetric, Statements, SteeringObjective, row_gradients
from saesteer.models import Site, encode_statements
from saesteer.steering import DivergenceMeter, TeacherForced

RAISE = ("i like the little house", "the water is good and so is the bread", "help me")
LOWER = ("i hate the hill", "go away", "i will not help anyone on the hill")
KL_TARGET = 0.02


def drawn(seed: int, length: float = 1.0) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=32)
    return length * raw / np.linalg.norm(raw)


@pytest.fixture(scope="module")
def metric() -> FisherMetric:
    root = np.random.default_rng(7).normal(size=(32, 32)) * np.linspace(0.1, 1, 32)
    return FisherMetric(root @ root.T, 100, 10)


@pytest.fixture
def contrast(tiny_llama, rows_of, site):
    def make(higher=RAISE, lower=LOWER, *, weight=1.0, name="statements", **rest) -> Statements:
        rows = rows_of(tiny_llama, [*higher, *lower])
        return Statements(TeacherForced(tiny_llama, rows, site=site, **rest), weight, name)

    return make


@pytest.fixture
def meter(tiny_llama, neutral, site) -> DivergenceMeter:
    return DivergenceMeter(tiny_llama, neutral(tiny_llama), site=site)


@pytest.fixture
def objective(meter, metric, vector_of):
    def make(
        *contrasts: Statements, kl_target: float = KL_TARGET, **changed: Any
    ) -> SteeringObjective:
        given = {"metric": metric, "make_vector": vector_of} | changed
        return SteeringObjective(contrasts, meter, kl_target=kl_target, **given)

    return make


def margin(contrast: Statements, vector_of, raw: np.ndarray) -> float:
    """m at a raw vector, from the likelihoods that evaluation reports."""
    length = float(np.linalg.norm(raw))
    said = statement_log_likelihoods(contrast.rows, vector_of(raw), length, "raw")
    n = len(said) // 2
    return float(np.mean(said[:n]) - np.mean(said[n:]))


def size(metric: FisherMetric, gain: np.ndarray) -> float:
    return float(np.sqrt(gain @ np.linalg.inv(metric.damped()) @ gain))


def test_the_gain_predicts_what_a_small_change_of_the_vector_does_to_the_effect(
    objective, contrast, metric, vector_of
):
    one = contrast()
    built = objective(one)
    start = drawn(0)
    linear = built.around(start)
    # 2 is the residual norm that `vector_of` gives, in whose units strength is.
    up, down = (2.0 * strength * start for strength in (linear.plus, linear.minus))
    assert up @ start > 0 > down @ start

    def effect(change: np.ndarray) -> float:
        raised, lowered = (margin(one, vector_of, v) for v in (up + change, down - change))
        return (raised - lowered) / 2

    assert linear.effects == {"statements": pytest.approx(effect(np.zeros(32)), abs=1e-5)}
    scale = 1 / size(metric, zero_gain(one))
    for seed in range(1, 6):
        push = drawn(seed, 0.03)
        measured = (effect(push) - effect(-push)) / 2
        assert linear.gain @ push / scale == pytest.approx(measured, rel=0.02, abs=2e-5)


def zero_gain(contrast: Statements) -> np.ndarray:
    gradients = row_gradients(contrast.rows)[0].double().numpy()
    n = len(gradients) // 2
    return gradients[:n].mean(axis=0) - gradients[n:].mean(axis=0)


def test_a_vector_along_the_gain_has_an_effect_and_one_against_it_the_opposite(
    objective, contrast, metric
):
    built = objective(contrast())
    target = np.linalg.solve(metric.damped(), built.at_zero.gain)
    effect = built.around(target).effects["statements"]
    assert effect > 0.01
    assert built.around(-target).effects["statements"] == pytest.approx(-effect, rel=0.1)
    assert effect > 2 * abs(built.around(drawn(3)).effects["statements"])


def test_contrasts_are_brought_to_one_scale_and_then_weighed(objective, contrast, metric):
    loud = contrast(name="loud")
    # Texts that share all but their end: a margin that moves far less.
    near = ("the water is good and so is the bread", "the cat sat on the mat by the dog")
    quiet = contrast(near, [f"{text} ." for text in near], name="quiet", weight=1.0)
    assert np.linalg.norm(zero_gain(quiet)) < 0.7 * np.linalg.norm(zero_gain(loud))
    alone = [objective(c).at_zero.gain for c in (loud, quiet)]
    for gain in alone:
        assert size(metric, gain) == pytest.approx(1, rel=1e-6)
    both = objective(loud, quiet).at_zero
    np.testing.assert_allclose(both.gain, alone[0] + alone[1], rtol=1e-6, atol=1e-9)
    assert list(both.effects) == ["loud", "quiet"]
    heavy = Statements(quiet.rows, 3.0, "heavy")
    assert size(metric, objective(heavy).at_zero.gain) == pytest.approx(3, rel=1e-6)
    start = drawn(0)
    parts = [objective(c).around(start).gain for c in (loud, quiet)]
    np.testing.assert_allclose(
        objective(loud, heavy).around(start).gain, parts[0] + 3 * parts[1], rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("max_tokens", [4096, 1])
def test_a_contrast_that_does_not_differ_counts_nothing(objective, contrast, max_tokens):
    # In other batches the same texts differ by rounding, which must not be scaled up.
    same = contrast(RAISE, [*RAISE[1:], RAISE[0]], name="same", max_tokens=max_tokens)
    alone, beside = objective(contrast()), objective(contrast(), same)
    np.testing.assert_array_equal(beside.at_zero.gain, alone.at_zero.gain)
    around = beside.around(drawn(0))
    np.testing.assert_array_equal(around.gain, alone.around(drawn(0)).gain)
    assert around.effects["same"] == pytest.approx(0, abs=1e-5)
    assert not objective(same).at_zero.gain.any()
    assert not objective(contrast(weight=0.0)).at_zero.gain.any()


def test_an_unreached_target_crashes_nothing_and_the_vectors_length_does_not_matter(
    objective, contrast
):
    for kl_target in (1e3, 1e-12):
        linear = objective(contrast(), kl_target=kl_target).around(drawn(0))
        assert linear.plus > 0 > linear.minus
        for values in (linear.gain, [*linear.effects.values()]):
            assert np.isfinite(values).all()
    built = objective(contrast())
    short, long = built.around(drawn(0, 1e-3)), built.around(drawn(0, 50.0))
    np.testing.assert_allclose(short.gain, long.gain, rtol=1e-3, atol=1e-5)
    assert short.effects == pytest.approx(long.effects, rel=1e-3)


def test_what_is_kept_is_used_again_and_says_the_same(objective, contrast):
    kept: dict[bytes, Any] = {}
    computed = []

    def keep(at, compute):
        if at.tobytes() not in kept:
            computed.append(at)
            kept[at.tobytes()] = compute()
        return kept[at.tobytes()]

    plain = objective(contrast())
    for _ in range(2):
        built = objective(contrast(), keep=keep)
        for start in (drawn(0), drawn(1)):
            one, other = built.around(start), plain.around(start)
            np.testing.assert_array_equal(one.gain, other.gain)
            assert (one.effects, one.plus, one.minus) == (other.effects, other.plus, other.minus)
        np.testing.assert_array_equal(built.at_zero.gain, plain.at_zero.gain)
    assert len(computed) == 3
    assert all(isinstance(v, np.ndarray) for found in kept.values() for v in found.values())


TEXTS = ("i like the little house", "go away", "the water is good and so is the bread", "no")
STEP = 0.03


def pushed(seed: int, length: float = 1.0) -> torch.Tensor:
    raw = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return length * raw / raw.norm()


def by_autograd(run, model, row, start) -> tuple[torch.Tensor, float]:
    u = start.clone().requires_grad_()
    log_probs = torch.log_softmax(run(model, row, u), -1)
    said = torch.tensor([t for t, kept in zip(row.ids, row.kept, strict=True) if kept])
    mean = log_probs.gather(1, said[:, None]).mean()
    (gradient,) = torch.autograd.grad(mean, u)
    return gradient, float(mean.detach())


@pytest.mark.parametrize("length", [0.0, -4.0])
@pytest.mark.parametrize(
    "prompts", [None, ("who is it", "how is the dog on the hill", "cat it is")]
)
def test_gradients_and_values_equal_autograd_row_by_row(
    tiny_llama, length, prompts, rows_of, vector_of, logits_by_hand, site
):
    model = tiny_llama
    rows = rows_of(model, TEXTS)
    if prompts:
        turns = [prompts[place % len(prompts)] for place in range(len(TEXTS))]
        rows = encode_statements(model.tokenizer, TEXTS, turns, chat=False)
    start = pushed(0)
    # 2 is the residual norm that `vector_of` gives, in whose units strength is.
    prepared = TeacherForced(model, rows, site=site, max_tokens=80)
    gradients, values = row_gradients(prepared, vector_of(start), length / 2)
    for row, gradient, value in zip(rows, gradients, values, strict=True):
        wanted, said = by_autograd(logits_by_hand, model, row, length * start)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
        assert float(value) == pytest.approx(said, rel=1e-5)
    assert gradients.dtype == torch.float32 and not gradients.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("where", [Site(1), Site(2, "hook_resid_pre"), Site(1, "hook_mlp_out")])
def test_gradients_predict_small_changes_of_the_log_likelihoods(
    tiny_llama, where, rows_of, vector_of
):
    length = 3.0
    prepared = TeacherForced(tiny_llama, rows_of(tiny_llama, TEXTS), site=where)
    start = length * pushed(0)
    vector = vector_of(start, where)
    gradients, values = row_gradients(prepared, vector, length, "raw")

    def said(raw):
        return statement_log_likelihoods(prepared, vector_of(raw, where), float(raw.norm()), "raw")

    np.testing.assert_allclose(values.numpy(), said(start), atol=1e-5)
    for seed in range(1, 5):
        push = pushed(seed, STEP)
        measured = (said(start + push) - said(start - push)) / (2 * STEP)
        predicted = (gradients @ push).numpy() / STEP
        np.testing.assert_allclose(predicted, measured, rtol=0.02, atol=3e-4)
        assert np.abs(measured).max() > 0.01


def test_gradients_on_top_of_a_vector_at_another_site_are_those_at_the_prepared_one(
    tiny_llama, rows_of, vector_of
):
    rows = rows_of(tiny_llama, TEXTS)
    below = vector_of(pushed(0), Site(0))
    apart = row_gradients(TeacherForced(tiny_llama, rows, site=Site(1)), below, 2.0)
    # Block 1's output is block 2's input, prepared anew and never shared with another vector.
    again = row_gradients(TeacherForced(tiny_llama, rows, site=Site(2, "hook_resid_pre")), below, 2)
    torch.testing.assert_close(apart[0], again[0], rtol=1e-4, atol=1e-6)
    unsteered = row_gradients(TeacherForced(tiny_llama, rows, site=Site(1)))
    assert float((apart[0] - unsteered[0]).abs().max()) > 1e-3
