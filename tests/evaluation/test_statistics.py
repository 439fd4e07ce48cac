"""Intervals cover what they claim, ratios own up to a weak denominator, corrections are by hand."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from scipy import stats

from saesteer.evaluation.statistics import (
    anti_steerable_share,
    area_under_log_kl,
    area_values,
    area_weights,
    compare_paired,
    hierarchical_bootstrap,
    holm,
    item_interval,
    pair_slopes,
    permutation_p,
    wilcoxon_over_personas,
)
from saesteer.utils.errors import DataError, MismatchError


def _personas(seed=0, n=12, shape=(3, 75), spread=0.2, mean=0.5):
    rng = np.random.default_rng(seed)
    return [rng.normal(mean + spread * rng.normal(), 0.5, shape) for _ in range(n)]


def _ends(found) -> tuple[float, float]:
    assert found.low is not None and found.high is not None
    return found.low, found.high


def test_macro_mean_counts_each_persona_once_however_many_pairs_it_has():
    values = [np.array([0.0, 1.0]), np.full(100, 2.0), [np.array([3.0]), np.array([5.0, 5.0, 5.0])]]
    assert hierarchical_bootstrap(values).value == pytest.approx((0.5 + 2.0 + 4.0) / 3)


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
        low, high = _ends(found)
        hits += low <= 0.5 <= high
    # A percentile bootstrap over 12 clusters falls a little short of 95%.
    assert 0.87 <= hits / 200 <= 0.99


def test_interval_over_items_is_narrower_than_the_one_over_personas():
    values = _personas(shape=(75,))
    over_items = item_interval(np.concatenate(values))
    over_personas = hierarchical_bootstrap(values)
    low, high = _ends(over_personas)
    assert over_items.high - over_items.low < 0.8 * (high - low)


def test_item_interval_is_scipys():
    row = np.random.default_rng(1).normal(size=75)
    found = item_interval(row)
    reference = stats.bootstrap((row,), np.mean, method="percentile", rng=0).confidence_interval
    assert found.mean == pytest.approx(row.mean())
    assert found[1:] == pytest.approx(tuple(reference), abs=0.02)


def test_ten_thousand_resamples_of_a_full_comparison_take_seconds():
    values = _personas()
    start = time.perf_counter()
    compare_paired(values, [v / 2 for v in values], resamples=10_000)
    assert time.perf_counter() - start < 10


def test_ratio_is_of_the_same_draws_so_a_common_difficulty_cancels():
    values = _personas(spread=0.4)
    found = compare_paired(values, [v / 2 for v in values])
    assert found.ratio.value == pytest.approx(2.0)
    assert (found.ratio.low, found.ratio.high) == pytest.approx((2.0, 2.0))
    assert found.difference.value == pytest.approx(np.mean(values) / 2)
    assert found.difference.low == pytest.approx(found.second.low)
    assert found.first == hierarchical_bootstrap(values)


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    values = _personas()
    assert hierarchical_bootstrap(values, seed=3) == hierarchical_bootstrap(values, seed=3)
    assert hierarchical_bootstrap(values, seed=3) != hierarchical_bootstrap(values, seed=4)


@pytest.mark.parametrize("mean", [0.0, 1e-300, 0.03])
def test_weak_denominator_gives_no_interval_and_says_so_without_a_warning(mean):
    weak = _personas(seed=5, spread=0.2, mean=mean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_paired(_personas(), weak)
    assert found.not_above_zero > 0.025
    assert (found.ratio.low, found.ratio.high) == (None, None)
    assert "not above 0" in found.ratio.note
    assert found.difference.low is not None


def test_negative_denominator_has_no_ratio():
    found = compare_paired(_personas(), _personas(mean=-1.0))
    assert found.ratio.value is None
    assert "no ratio" in found.ratio.note


def test_denominator_at_zero_in_a_few_draws_keeps_the_lower_end():
    # The mean is at or below 0 where the one at -0.03 is drawn four times or more of nine.
    second = [np.array([v]) for v in (0.02, 0.02, 0.02, 0.02, -0.03, 0.02, 0.02, 0.02, 0.02)]
    found = compare_paired([np.array([1.0])] * 9, second, resamples=20_000)
    share = found.not_above_zero
    assert share == pytest.approx(stats.binom.sf(3, 9, 1 / 9), abs=0.005)
    assert share < 0.025
    assert found.ratio.value == pytest.approx(1 / np.mean(second))
    assert found.ratio.low is not None and found.ratio.low > 1


def test_persona_that_missed_the_target_in_one_method_leaves_both():
    values = _personas(n=4)
    found = compare_paired([*values[:3], None], [None, *values[1:]])
    assert found.first.n_personas == 2
    assert found.first.value == found.second.value == pytest.approx(np.mean(values[1:3]))


def test_one_persona_has_no_interval_over_personas():
    found = hierarchical_bootstrap([np.arange(10.0)])
    assert (found.value, found.low, found.high) == (4.5, None, None)
    assert "one persona" in found.note
    assert compare_paired([np.ones(3)], [np.full(3, 2.0)]).ratio.value == 0.5


def test_no_persona_is_an_empty_estimate():
    assert hierarchical_bootstrap([None]).n_personas == 0
    assert compare_paired([], []).ratio.value is None


@pytest.mark.parametrize(
    "bad", [np.array([]), np.array([1.0, np.nan]), [], [np.array([1.0]), np.array([])]]
)
def test_values_that_cannot_be_averaged_are_refused(bad):
    with pytest.raises(DataError, match="persona 1"):
        hierarchical_bootstrap([np.ones(3), bad])


def test_methods_on_other_pairs_are_refused():
    with pytest.raises(MismatchError, match="persona 0"):
        compare_paired([np.ones(3)], [np.ones(4)])
    with pytest.raises(MismatchError, match="1 and 2 personas"):
        compare_paired([np.ones(3)], [np.ones(3), np.ones(3)])


def test_wilcoxon_of_twelve_personas_that_all_agree_is_exact():
    first = np.linspace(1.0, 2.1, 12)
    found = wilcoxon_over_personas(list(first), [0.0] * 12)
    assert found.p == pytest.approx(2 / 2**12)
    assert found.exact
    assert found.note == ""
    assert found.median_difference == pytest.approx(np.median(first))


def test_wilcoxon_with_tied_differences_enumerates_every_sign():
    differences = np.array([1.0, 1.0, 2.0, 3.0, 3.0, -1.0, 4.0])
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    signs = (np.arange(2**7)[:, None] >> np.arange(7)) & 1
    sums = signs @ ranks
    centre = ranks.sum() / 2
    by_hand = (np.abs(sums - centre) >= abs(observed - centre) - 1e-9).mean()
    found = wilcoxon_over_personas(differences.tolist(), [0.0] * 7)
    assert found.exact
    assert found.p == pytest.approx(by_hand)


def test_wilcoxon_says_when_there_are_too_few_personas():
    found = wilcoxon_over_personas([1.0, 2.0, 3.0, None, 4.0], [0.0, 0.0, 0.0, 1.0, 0.5])
    assert found.n_personas == 4
    assert found.p == pytest.approx(0.125)
    assert "4 personas cannot give a p below 0.125" in found.note


def test_wilcoxon_of_nothing_but_ties_has_no_p():
    assert wilcoxon_over_personas([1.0, 2.0], [1.0, 2.0]).p is None
    with pytest.raises(MismatchError):
        wilcoxon_over_personas([1.0], [])


def test_holm_is_the_hand_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 made monotone.
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None})
    expected = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    assert {k: v for k, v in corrected.items() if v is not None} == pytest.approx(expected)
    assert corrected["e"] is None
    assert list(corrected) == ["a", "b", "c", "d", "e"]


def test_holm_never_exceeds_one():
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_permutation_p_counts_either_sign_and_ties():
    assert permutation_p(0.5, [0.1, -0.6, 0.5, 0.2]) == pytest.approx(3 / 5)
    assert permutation_p(1.0, [0.0] * 19) == pytest.approx(1 / 20)
    assert permutation_p(1.0, []) == 1.0
    with pytest.raises(DataError):
        permutation_p(float("nan"), [0.1])


def test_area_of_a_constant_effect_is_that_effect():
    assert area_under_log_kl({0.1: 0.7, 0.3: 0.7, 1.0: 0.7}).value == pytest.approx(0.7)


def test_area_is_the_trapezoid_by_hand():
    effects = {1.0: 0.6, 0.1: 0.2, 0.3: 0.5}
    found = area_under_log_kl(effects)
    by_hand = (0.35 * np.log(3) + 0.55 * np.log(1 / 0.3)) / np.log(10)
    assert found.value == pytest.approx(by_hand)
    assert (found.from_target, found.to_target, found.missing, found.note) == (0.1, 1.0, (), "")


def test_area_says_which_targets_it_lacks():
    found = area_under_log_kl({0.1: 0.2, 0.3: 0.4, 1.0: None})
    assert found.value == pytest.approx(0.3)
    assert found.note == "KL target 1 not reached: the area is over 0.1 to 0.3."
    assert area_under_log_kl({0.1: 0.2, 0.3: None, 1.0: 0.4}).value == pytest.approx(0.3)
    alone = area_under_log_kl({0.1: 0.2, 0.3: float("nan")})
    assert alone.value is None
    assert "fewer than two" in alone.note


def test_area_of_every_pair_averages_to_the_area_of_the_means():
    by_target = {b: _personas(i, n=3, shape=(2, 7)) for i, b in enumerate((0.3, 0.1, 1.0))}
    means = {b: float(np.mean(values)) for b, values in by_target.items()}
    found = hierarchical_bootstrap(area_values(by_target))
    assert found.value == pytest.approx(area_under_log_kl(means).value)
    by_target[1.0] = [None, *by_target[1.0][1:]]
    assert area_values(by_target)[0] is None


def test_area_needs_two_targets_above_zero():
    assert area_weights([0.1, 1.0]) == pytest.approx({0.1: 0.5, 1.0: 0.5})
    for bad in ([], [0.3], [0.3, 0.3], [0.0, 1.0]):
        with pytest.raises(DataError):
            area_weights(bad)


def test_slopes_are_polyfits():
    strengths = [-1.5, -1.0, 0.0, 0.5, 1.5]
    margins = np.random.default_rng(2).normal(size=(5, 8))
    assert pair_slopes(strengths, margins) == pytest.approx(np.polyfit(strengths, margins, 1)[0])


def test_anti_steerable_share_counts_slopes_below_zero():
    assert anti_steerable_share(np.array([-1.0, 0.0, 0.5, -0.1])) == 0.5
    assert anti_steerable_share(np.array([])) is None


def test_slopes_need_two_strengths_and_a_row_for_each():
    for strengths, margins in (([1.0], np.ones((1, 3))), ([1.0, 2.0], np.ones((3, 3))), ([], [[]])):
        with pytest.raises(DataError):
            pair_slopes(strengths, np.asarray(margins))
