"""How an approximation is compared with activation patching."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from saesteer.patching.attribution.agreement import agreement
from saesteer.patching.result import Method, PatchResult
from saesteer.utils.errors import ConfigError

CLEAN, CORRUPTED = np.array([3.0, 2.0]), np.array([-1.0, 1.0])


def _result(
    values: np.ndarray, method: Method = "activation", layers=(0, 1, 2), heads=(0, 1)
) -> PatchResult:
    return PatchResult(
        method=method,
        component="z",
        mode="denoising",
        metric="logit_difference",
        dims=("layer", "head"),
        coords={"layer": layers, "head": heads},
        values=values,
        clean=CLEAN,
        corrupted=CORRUPTED,
        pairs=("one", "two"),
    )


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 2))


@pytest.mark.parametrize("normalised", [True, False])
def test_the_same_numbers_agree_wholly(values, normalised):
    found = agreement(_result(values, "attribution"), _result(values), normalised=normalised)
    assert found.rank_correlation == pytest.approx(1)
    assert (found.overlap, found.same_sign, found.top_k) == (1, 1, 6)
    assert found.method == "attribution"
    effects = values - CORRUPTED[:, None, None]
    wanted = effects / (CLEAN - CORRUPTED)[:, None, None] if normalised else effects
    np.testing.assert_allclose(found.actual, wanted.mean(axis=0).ravel())


def test_the_rank_correlation_and_the_overlap_are_what_they_are_called(values):
    other = values + np.random.default_rng(1).normal(size=values.shape)
    found = agreement(_result(other, "attribution"), _result(values), top_k=3)
    ours, theirs = found.approximate, found.actual
    ranks = [np.argsort(np.argsort(x)) for x in (ours, theirs)]
    assert found.rank_correlation == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])
    assert found.correlation == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    top = [set(np.argsort(-np.abs(x))[:3]) for x in (ours, theirs)]
    assert found.overlap == pytest.approx(len(top[0] & top[1]) / 3)
    strongest = np.argsort(-np.abs(theirs))[:3]
    assert found.same_sign == np.mean(ours[strongest] * theirs[strongest] > 0)


def test_the_worst_cells_come_first(values):
    other = values.copy()
    other[:, 1, 1] += 5
    other[:, 2, 0] -= 2
    worst = agreement(_result(other, "attribution"), _result(values), normalised=False).worst(2)
    assert worst[["layer", "head"]].to_numpy().tolist() == [[1, 1], [2, 0]]
    np.testing.assert_allclose(worst["difference"], [5, -2])


def test_cells_are_matched_by_label_and_nan_is_left_out(values):
    exact = _result(values[:, ::-1][:, :2], layers=(2, 1))
    rough = values.copy()
    rough[0, 2, 1] = np.nan
    rough[:, 1, 0] = np.nan
    found = agreement(_result(rough, "attribution"), exact, normalised=False)
    assert found.labels == ((2, 0), (2, 1), (1, 1))
    np.testing.assert_allclose(found.approximate, found.actual)
    np.testing.assert_allclose(found.actual[1], values[1, 2, 1] - CORRUPTED[1])
    assert found.numbers()["cells"] == 3


def test_a_pair_without_a_gap_between_clean_and_corrupted_is_left_out(values):
    level = {"clean": np.array([3.0, 1.0]), "corrupted": CORRUPTED}
    rough, exact = (replace(_result(values, method), **level) for method in get_args(Method)[1::-1])
    found = agreement(rough, exact)
    np.testing.assert_allclose(found.actual, ((values[0] + 1) / 4).ravel())


def test_too_few_or_equal_cells_have_no_rank_correlation(values):
    few = agreement(
        _result(values[:, :1], "attribution", layers=(0,)), _result(values[:, :1], layers=(0,))
    )
    assert np.isnan(few.rank_correlation) and few.overlap == 1
    level = agreement(_result(np.ones((2, 3, 2)), "attribution"), _result(values), normalised=False)
    assert np.isnan(level.rank_correlation)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"component": "q"}, "component"),
        ({"mode": "noising"}, "mode"),
        ({"metric": "kl"}, "metric"),
        ({"pairs": ("one", "three")}, "pairs"),
        ({"coords": {"layer": (7, 8, 9), "head": (0, 1)}}, "share no cell"),
        ({"values": np.full((2, 3, 2), np.nan)}, "share no cell"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(values, change, says):
    with pytest.raises(ConfigError, match=says):
        agreement(replace(_result(values, "attribution"), **change), _result(values))


def test_no_cells_to_compare_are_refused(values):
    with pytest.raises(ConfigError, match="top_k"):
        agreement(_result(values), _result(values), top_k=0)
