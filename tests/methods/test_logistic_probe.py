"""The probe is penalised maximum likelihood, in raw units, chosen on pairs held out whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.methods import LogisticProbe
from saesteer.utils.errors import ConfigError

WIDTH = 10


def sides(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = np.geomspace(0.1, 20, WIDTH)
    shift = np.linspace(-0.5, 0.5, WIDTH)
    topic = rng.normal(size=(n, WIDTH))
    noise = rng.normal(size=(2, n, WIDTH))
    both = (topic + noise + shift * np.array([1, -1])[:, None, None]) * scale
    return tuple(both.astype(np.float32).astype(np.float64))  # type: ignore[return-value]


def standardised(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([positive, negative])
    return (both - both.mean(axis=0)) / both.std(axis=0), both.std(axis=0)


def by_scipy(x: np.ndarray, labels: np.ndarray, c: float) -> np.ndarray:
    """Weights and intercept that minimise |w|^2 / 2 + c * sum of log-losses."""
    from scipy.optimize import minimize

    signs = 2 * labels - 1

    def loss(parameters: np.ndarray) -> float:
        scores = signs * (x @ parameters[:-1] + parameters[-1])
        return parameters[:-1] @ parameters[:-1] / 2 + c * np.logaddexp(0, -scores).sum()

    return minimize(loss, np.zeros(x.shape[1] + 1), method="BFGS", options={"gtol": 1e-7}).x


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_direction_is_the_raw_gradient_of_the_penalised_fit(c, given_sides):
    positive, negative = sides()
    x, deviation = standardised(positive, negative)
    wanted = by_scipy(x, np.repeat([1, 0], 60), c)[:-1] / deviation
    vector = LogisticProbe(c=(c,)).fit_in(given_sides(positive, negative)).vector_
    np.testing.assert_allclose(
        vector.direction.numpy(), wanted / np.linalg.norm(wanted), rtol=1e-3, atol=1e-4
    )
    mean = (positive - negative).mean(axis=0)
    assert vector.norm == pytest.approx(abs(mean @ vector.direction.numpy()), rel=1e-4)


def test_the_penalty_is_that_of_least_loss_on_pairs_held_out_whole(given_sides):
    positive, negative = sides(25)
    strengths = (1e-3, 1e-2, 1e-1, 1.0)
    vector = LogisticProbe(strengths, folds=5).fit_in(given_sides(positive, negative)).vector_
    losses = []
    for c in strengths:
        per_fold = []
        for fold in range(5):
            out = np.arange(25) % 5 == _fold_of(fold)
            x, labels = np.concatenate([positive[~out], negative[~out]]), np.repeat([1, 0], 20)
            centre, deviation = x.mean(axis=0), x.std(axis=0)
            fit = by_scipy((x - centre) / deviation, labels, c)
            held = (np.concatenate([positive[out], negative[out]]) - centre) / deviation
            scores = (2 * np.repeat([1, 0], 5) - 1) * (held @ fit[:-1] + fit[-1])
            per_fold.append(np.logaddexp(0, -scores).mean())
        losses.append(np.mean(per_fold))
    fit = vector.provenance["fit"]
    assert isinstance(fit, dict)
    assert fit["c"] == strengths[int(np.argmin(losses))]
    assert fit["held_out_log_loss"] == pytest.approx(min(losses), rel=1e-3)


def _fold_of(number: int) -> int:
    # Groups of equal size go to folds in turn, from the last one back.
    return (25 - 1 - number) % 5


def test_sides_that_separate_perfectly_still_give_finite_weights(given_sides):
    positive, negative = sides(8)
    vector = LogisticProbe().fit_in(given_sides(positive + 1e4, negative - 1e4)).vector_
    assert torch.isfinite(vector.direction).all()
    assert float(vector.direction @ torch.ones(WIDTH)) > 0


def test_a_coordinate_that_never_varies_weighs_nothing(given_sides):
    positive, negative = sides()
    positive[:, 4] = negative[:, 4] = 3.0
    vector = LogisticProbe().fit_in(given_sides(positive, negative)).vector_
    assert vector.direction[4] == 0


def test_settings_out_of_range_are_sentences():
    for c in ((), (0.0,), (1.0, -1.0), (float("nan"),)):
        with pytest.raises(ConfigError, match=r"c: .* must be numbers above 0"):
            LogisticProbe(c=c)
    with pytest.raises(ConfigError, match=r"folds: 1 cannot hold pairs out"):
        LogisticProbe(folds=1)
