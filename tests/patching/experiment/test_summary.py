"""Effects over prompts, their intervals, and positions by what stands there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from saesteer.patching.summary import (
    ANSWER,
    BEFORE,
    DIFFERS,
    FIRST,
    by_place,
    effects,
    has_gap,
    place_names,
    sample_means,
)
from tests.patching.made_up_results import batch, result


def test_a_share_is_the_summed_change_over_the_summed_gap():
    rng = np.random.default_rng(1)
    clean, corrupted = rng.normal(3, 1, 20), rng.normal(-1, 1, 20)
    values = rng.normal(size=(20, 3, 4))
    found = effects(result(values, ("layer", "head"), clean=clean, corrupted=corrupted), "share")
    expected = (values - corrupted[:, None, None]).sum(0) / (clean - corrupted).sum()
    np.testing.assert_allclose(found.value, expected, atol=1e-12)
    assert (found.low < found.value).all() and (found.value < found.high).all()


def test_one_prompt_without_a_gap_does_not_drown_the_others():
    clean, corrupted = np.array([1.0, 1.0, 1e-9]), np.zeros(3)
    values = np.full((3, 1, 1), 0.5)
    one = result(values, ("layer", "head"), clean=clean, corrupted=corrupted)
    assert effects(one, "share").value.item() == pytest.approx(0.75)
    assert abs(one.mean().item()) > 1e6


def test_noising_starts_at_the_clean_run():
    values = np.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    found = effects(result(values, ("layer", "head"), mode="noising"), "share")
    np.testing.assert_allclose(found.value, [[0.0, -1.0]])


def test_the_interval_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    values = rng.normal(0.4, 0.3, (40, 1, 1))
    found = effects(result(values, ("layer", "head")), "share", resamples=20_000)
    drawn = values.ravel()[rng.integers(40, size=(20_000, 40))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low.item() == pytest.approx(low, abs=0.01)
    assert found.high.item() == pytest.approx(high, abs=0.01)


def test_cells_that_a_prompt_lacks_are_left_out_of_sum_and_gap():
    values = np.array([[[0.5, np.nan]], [[0.5, np.nan]], [[0.5, 1.0]]])
    found = effects(result(values, ("layer", "position")), "share")
    np.testing.assert_allclose(found.value, [[0.5, 1.0]])
    np.testing.assert_array_equal(found.n, [[3, 1]])
    assert np.isnan(found.low[0, 1])
    nothing = effects(result(np.full((2, 1, 1), np.nan), ("layer", "position")), "share")
    assert np.isnan(nothing.value).all() and np.isnan(nothing.high).all()


def test_a_change_is_in_the_units_of_the_metric():
    values = np.array([[[2.0]], [[4.0]]])
    one = result(values, ("layer", "head"), clean=np.zeros(2), corrupted=np.ones(2))
    assert effects(one, "change").value.item() == pytest.approx(2.0)


def test_a_gap_is_one_that_chance_would_not_make():
    rng = np.random.default_rng(3)
    noise = rng.normal(size=30)
    names = [f"pair {i}" for i in range(30)]
    assert not has_gap(noise - noise.mean(), np.zeros(30), names)
    assert has_gap(noise + 2, np.zeros(30), names)
    assert not has_gap(np.zeros(30), noise + 2, names)
    assert not has_gap(np.array([]), np.array([]), [])
    assert not has_gap(np.array([np.nan]), np.array([0.0]), ["a"])


def test_a_pair_and_its_reverse_are_one_sample():
    rng = np.random.default_rng(5)
    values = rng.normal(0.4, 0.3, (10, 1, 1))
    names = tuple(f"pair {i}" for i in range(10))
    once = effects(result(values, ("layer", "head"), pairs=names), "share")
    both = tuple(n for name in names for n in (name, f"{name} reversed"))
    twice = effects(result(values.repeat(2, axis=0), ("layer", "head"), pairs=both), "share")
    # The same numbers given a second time make nothing surer.
    assert (twice.low, twice.high) == (once.low, once.high)
    np.testing.assert_allclose(sample_means(values.repeat(2, axis=0), both), values)
    alone = result(values[:2], ("layer", "head"), pairs=("a", "a reversed"))
    assert np.isnan(effects(alone, "share").low).all()


def test_positions_are_named_by_what_the_two_prompts_share():
    assert place_names(batch(), "denoising") == (
        (FIRST, BEFORE, DIFFERS, DIFFERS, ANSWER),
        (FIRST, BEFORE, DIFFERS, "same end", ANSWER),
    )
    assert place_names(batch(), "noising")[0] == ("", FIRST, BEFORE, DIFFERS, ANSWER)


def test_roles_of_a_pair_name_its_positions_and_padding_stays_nameless():
    made = batch()
    pairs = tuple(replace(p, roles={"noun": 2, "end": 3}) for p in made.pairs)
    named = place_names(replace(made, pairs=pairs), "noising")
    assert named[0] == ("", FIRST, "other words", "noun", ANSWER)
    # The clean noun has no counterpart in the longer corrupted prompt.
    assert place_names(replace(made, pairs=pairs), "denoising")[0] == (
        FIRST, "other words", "other words", "other words", ANSWER,
    )  # fmt: skip


def test_places_sum_the_changes_of_their_positions():
    names = place_names(batch(), "denoising")
    values = np.array([[[0.1, 0.2, 0.3, 0.4, 0.5]], [[0.1, 0.2, 0.3, 0.4, 0.5]]]) + 2
    moved = by_place(
        result(values, ("layer", "position"), clean=np.full(2, 4.0), corrupted=np.full(2, 2.0)),
        names,
    )
    assert moved.dims == ("layer", "place") and moved.coords["place"][-1] == ANSWER
    at = dict(zip(moved.coords["place"], np.moveaxis(moved.values, 2, 0), strict=True))
    np.testing.assert_allclose(at[DIFFERS].ravel(), [2.7, 2.3])
    np.testing.assert_allclose(at["same end"].ravel(), [np.nan, 2.4])
    np.testing.assert_allclose(at[ANSWER].ravel(), [2.5, 2.5])


def test_places_leave_other_axes_where_they_are():
    values = np.zeros((2, 3, 4, 5))
    values[:, 1, 2, 4] = 1.0
    moved = by_place(
        result(values, ("layer", "head", "position")), place_names(batch(), "denoising")
    )
    assert moved.dims == ("layer", "head", "place")
    assert moved.values[:, 1, 2, -1].tolist() == [1.0, 1.0]
    assert np.nansum(moved.values) == 2.0
