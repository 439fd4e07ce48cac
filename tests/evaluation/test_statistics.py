"""Intervals cover what they claim, ratios own up to a weak denominator, corrections are by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import trapezoid

from saesteer.evaluation.statistics import (
    area_values,
    hierarchical_bootstrap,
    holm,
    item_interval,
    pair_slopes,
    paired_ratio,
    permutation_p,
    wilcoxon_over_personas,
)
from saesteer.utils.errors import DataError


def _personas(seed=0, n=12, shape=(3, 75), spread=0.2, mean=0.5):
    rng = np.random.default_rng(seed)
    return [rng.normal(mean + spread * rng.normal(), 0.5, shape) for _ in range(n)]


def _width(found) -> float:
    assert found.low is not None and found.high is not None
    return found.high - found.low


def test_interval_equals_one_from_a_plain_loop():
    values = _personas(n=5, shape=(2, 9))
    found = hierarchical_bootstrap(values, resamples=20_000)
    rng = np.random.default_rng(99)
    means = []
    for _ in range(4000):
        drawn = rng.integers(5, size=5)
        own = [[rng.choice(row, len(row)).mean() for row in values[p]] for p in drawn]
        means.append(np.mean(own))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        found = hierarchical_bootstrap(_personas(seed, shape=(20,)), resamples=500, seed=seed)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    # A percentile bootstrap over 12 clusters falls a little short of 95%.
    assert 0.87 <= hits / 200 <= 0.99


def test_interval_over_items_is_scipys_and_narrower_than_the_one_over_personas():
    values = _personas(shape=(75,))
    over_items = item_interval(np.concatenate(values))
    assert _width(over_items) < 0.8 * _width(hierarchical_bootstrap(values))
    row = np.random.default_rng(1).normal(size=75)
    found = item_interval(row)
    reference = stats.bootstrap((row,), np.mean, method="percentile", rng=0).confidence_interval
    assert found.mean == pytest.approx(row.mean())
    assert found[1:] == pytest.approx(tuple(reference), abs=0.02)


def test_ratio_is_of_the_same_draws_so_a_common_difficulty_cancels():
    values = _personas(n=4, spread=0.4)
    assert paired_ratio(values, [v / 2 for v in values])[:3] == pytest.approx((2.0, 2.0, 2.0))
    # A persona that missed the target in one method leaves both.
    found = paired_ratio([*values[:3], None], [None, *(v / 4 for v in values[1:])])
    assert (found.n_personas, found.value) == (2, pytest.approx(4.0))
    # A weak denominator gives no interval and no warning.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mean in (0.0, 1e-300, 0.03, -1.0):
            weak = _personas(seed=5, spread=0.2, mean=mean)
            found = paired_ratio(_personas(), weak)
            assert (found.low, found.high) == (None, None)
            assert (found.value is None) == (np.mean(weak) <= 0)
    for other in ([np.ones(4)], [np.ones(3), np.ones(3)], [[np.ones(3), np.ones(3)]]):
        with pytest.raises(ValueError):
            paired_ratio([np.ones(3)], other)


def test_denominator_at_zero_in_a_few_draws_keeps_the_lower_end():
    # The mean is at or below 0 where the one at -0.03 is drawn four times or more of nine.
    second = [np.array([v]) for v in (0.02, 0.02, 0.02, 0.02, -0.03, 0.02, 0.02, 0.02, 0.02)]
    assert stats.binom.sf(3, 9, 1 / 9) < 0.025
    found = paired_ratio([np.array([1.0])] * 9, second, resamples=20_000)
    assert found.value == pytest.approx(1 / np.mean(second))
    assert found.low is not None and found.low > 1


def test_each_persona_counts_once_and_one_has_no_interval():
    values = [np.array([0.0, 1.0]), np.full(100, 2.0), [np.array([3.0]), np.array([5.0, 5.0, 5.0])]]
    found = hierarchical_bootstrap(values, seed=3)
    assert found.value == pytest.approx((0.5 + 2.0 + 4.0) / 3)
    assert found == hierarchical_bootstrap(values, seed=3)
    assert hierarchical_bootstrap([np.arange(10.0)]) == (4.5, None, None, 1)
    assert paired_ratio([np.ones(3)], [np.full(3, 2.0)]).value == 0.5
    assert hierarchical_bootstrap([None]).n_personas == 0
    assert paired_ratio([], []).value is None
    for bad in (np.array([]), np.array([1.0, np.nan]), [], [np.array([1.0]), np.array([])]):
        with pytest.raises(DataError, match="persona 1"):
            hierarchical_bootstrap([np.ones(3), bad])


def test_wilcoxon_enumerates_every_sign_also_with_tied_differences():
    assert wilcoxon_over_personas(list(np.linspace(1.0, 2.1, 12)), [0.0] * 12) == pytest.approx(
        2 / 2**12
    )
    differences = np.array([1.0, 1.0, 2.0, 3.0, 3.0, -1.0, 4.0])
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    signs = (np.arange(2**7)[:, None] >> np.arange(7)) & 1
    sums = signs @ ranks
    centre = ranks.sum() / 2
    by_hand = (np.abs(sums - centre) >= abs(observed - centre) - 1e-9).mean()
    assert wilcoxon_over_personas(differences.tolist(), [0.0] * 7) == pytest.approx(by_hand)
    # Who was not measured, and ties, are left out.
    assert wilcoxon_over_personas([1.0, 2.0, 3.0, None, 4.0], [0.0] * 5) == pytest.approx(0.125)
    assert wilcoxon_over_personas([1.0, 2.0], [1.0, 2.0]) is None


def test_holm_is_the_hand_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 made monotone.
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None})
    expected = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02, "e": None}
    assert corrected == {k: v if v is None else pytest.approx(v) for k, v in expected.items()}
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_permutation_p_counts_either_sign_and_ties():
    assert permutation_p(0.5, [0.1, -0.6, 0.5, 0.2]) == pytest.approx(3 / 5)
    assert permutation_p(1.0, [0.0] * 19) == pytest.approx(1 / 20)
    assert permutation_p(1.0, []) == 1.0


def test_the_area_is_the_trapezoid_over_log_kl_pair_by_pair():
    by_target = {b: _personas(i, n=3, shape=(2, 7)) for i, b in enumerate((0.3, 0.1, 1.0))}
    found = hierarchical_bootstrap(area_values(by_target))
    means = [float(np.mean(by_target[b])) for b in (0.1, 0.3, 1.0)]
    by_hand = trapezoid(means, np.log([0.1, 0.3, 1.0])) / np.log(10)
    assert found.value == pytest.approx(by_hand)
    by_target[1.0] = [None, *by_target[1.0][1:]]
    assert area_values(by_target)[0] is None


def test_slopes_are_polyfits():
    strengths = [-1.5, -1.0, 0.0, 0.5, 1.5]
    margins = np.random.default_rng(2).normal(size=(5, 8))
    assert pair_slopes(strengths, margins) == pytest.approx(np.polyfit(strengths, margins, 1)[0])
