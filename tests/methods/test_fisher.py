"""The sampled Fisher metric converges to the exact one, and the exact one is the cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.data import load_pairs
from saesteer.methods import FitContext
from saesteer.methods.objective import FisherMetric, fisher_metric
from saesteer.models import encode_texts
from saesteer.saes import load_sae
from saesteer.steering import DivergenceMeter, TeacherForced
from saesteer.utils.errors import ConfigError

TEXTS = ("i like the little house", "go away", "the water is good")


def exact(run, model, rows) -> np.ndarray:
    """The sum over positions of J' (diag p - p p') J, per token, J by central differences."""
    total, count, step = np.zeros((32, 32)), 0, 0.02
    for row in rows:
        with torch.no_grad():
            p = torch.softmax(run(model, row, torch.zeros(32)), -1).double().numpy()
            plus, minus = (
                torch.stack([run(model, row, sign * step * e) for e in torch.eye(32)])
                for sign in (1, -1)
            )
        jacobian = ((plus - minus).double() / (2 * step)).numpy()
        for position, share in enumerate(p):
            j = jacobian[:, position]
            total += j @ (np.diag(share) - np.outer(share, share)) @ j.T
            count += 1
    return total / count


def error(estimate: FisherMetric, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(estimate.matrix - wanted) / np.linalg.norm(wanted))


def test_it_converges_to_the_exact_metric_as_samples_grow(
    tiny_llama, rows_of, logits_by_hand, site
):
    model = tiny_llama
    rows = rows_of(model, TEXTS)
    wanted = exact(logits_by_hand, model, rows)
    prepared = TeacherForced(model, rows, site=site)
    metrics = [fisher_metric(prepared, n_samples=n) for n in (6, 60, 480)]
    errors = [error(metric, wanted) for metric in metrics]
    # Independent draws: ten times as many leave about 1 / sqrt(10) of the error.
    assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2]
    assert errors[2] < 0.15
    assert metrics[2].mean_diagonals[0] == pytest.approx(np.trace(wanted) / 32, rel=0.05)


def test_it_is_symmetric_never_negative_and_the_same_under_the_same_seed(tiny_llama, rows_of, site):
    model = tiny_llama
    prepared = TeacherForced(model, rows_of(model, TEXTS), site=site)
    metric = fisher_metric(prepared, n_samples=8)
    np.testing.assert_allclose(metric.matrix, metric.matrix.T, rtol=1e-12)
    assert np.linalg.eigvalsh(metric.matrix).min() > -1e-12
    assert np.isfinite(metric.matrix).all()
    assert metric.n_samples == 8 * len(TEXTS)
    assert metric.n_tokens == sum(sum(row.kept) for row in rows_of(model, TEXTS))

    first, again, other = (fisher_metric(prepared, n_samples=4, seed=s) for s in (3, 3, 4))
    assert np.array_equal(first.matrix, again.matrix)
    assert error(other, first.matrix) > 0.01
    # Nor do other draws in between, as of a model that samples text.
    torch.manual_seed(1)
    torch.rand(5)
    assert np.array_equal(fisher_metric(prepared, n_samples=4, seed=3).matrix, first.matrix)


def test_the_predicted_cost_is_the_measured_divergence_at_small_strength(
    tiny_model, neutral, vector_of, site
):
    model = tiny_model("gpt2")
    rows = neutral(model)
    meter = DivergenceMeter(model, rows, site=site)
    metric = fisher_metric(TeacherForced(model, rows, site=site), n_samples=200)
    assert metric.n_tokens == meter.n_tokens
    for seed in range(5):
        raw = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        raw *= 0.2 / raw.norm()
        pushed = raw.double().numpy()
        predicted = pushed @ metric.matrix @ pushed / 2
        # Odd powers of the strength cancel between the two signs.
        measured = np.mean([meter(vector_of(raw), s * 0.2, "raw") for s in (1, -1)])
        assert measured == pytest.approx(predicted, rel=0.08)
        assert predicted > 1e-5


def test_damping_adds_the_mean_diagonal_and_the_natural_gradient_undoes_it():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    metric = FisherMetric(root @ root.T, 1, 1)
    mean = float(np.mean(np.diag(root @ root.T)))
    assert metric.mean_diagonals == [pytest.approx(mean)]
    np.testing.assert_allclose(metric.damped(0.5), root @ root.T + 0.5 * mean * np.eye(5))
    np.testing.assert_allclose(metric.damped(0.0), metric.matrix)
    gain = rng.normal(size=5)
    for ridge in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(metric.damped(ridge) @ metric.solve(gain, ridge), gain)


def test_a_text_without_bos_or_prompt_is_scored_from_its_second_token(tiny_model, site):
    model = tiny_model("qwen3")
    rows = encode_texts(model.tokenizer, ["the cat sat on the mat"] * 40)
    assert all(rows[0].kept)
    meter = DivergenceMeter(model, rows, site=site)
    metric = fisher_metric(TeacherForced(model, rows, site=site), n_samples=1)
    assert meter.n_tokens == metric.n_tokens == 40 * (len(rows[0]) - 1)


def test_a_metric_without_inverse_asks_for_a_ridge():
    column = np.random.default_rng(0).normal(size=(6, 2))
    thin = FisherMetric(column @ column.T, 2, 1)
    with pytest.raises(ConfigError, match=r"with 0 the Fisher metric of 2 samples has no inverse"):
        thin.solve(np.ones(6), 0.0)
    assert np.isfinite(thin.solve(np.ones(6), 0.1)).all()
    with pytest.raises(ConfigError, match=r"has no inverse"):
        FisherMetric(np.full((6, 6), np.nan), 2, 1).solve(np.ones(6))


@pytest.mark.real
def test_the_bundled_metric_is_that_of_the_bundled_model(smollm2_float32):
    # In float32, as it was made: rounding draws other tokens.
    model, sae = smollm2_float32, load_sae("smollm2")
    given = FitContext(model, load_pairs("agreeableness"), sae=sae)
    # Other answers or another site have another name.
    assert given.cost.bundled_metric.is_file()
    bundled, rows = given.cost.metric, given.cost.rows

    def texts(chosen) -> TeacherForced:
        return TeacherForced(model, chosen, site=sae.site, max_tokens=1024)

    # All draws take minutes, the first of the first pass seconds. They are among the metric's, and
    # then the others alone are a sum of squares too, which has no negative eigenvalue.
    whole = texts(rows)
    first = texts([rows[place] for place in next(whole.passes()).index])

    def lowest(seed: int) -> float:
        drawn = fisher_metric(first, n_samples=1, seed=seed)
        draws = bundled.n_samples // len(rows)
        squares = drawn.matrix * drawn.n_tokens
        others = bundled.matrix * bundled.n_tokens * draws - squares
        return np.linalg.eigvalsh(others)[0] / (np.trace(squares) / first.n_rows)

    assert bundled.n_tokens == whole.n_scored
    assert lowest(seed=0) > -1e-3
    # Other draws are not among them.
    assert lowest(seed=1) < -0.1
