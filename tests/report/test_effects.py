"""The figures' data are the metrics' numbers, by hand."""

from __future__ import annotations

import pytest

from saesteer.report.effects import (
    forest_data,
    headline_data,
    method_table,
    missed_targets,
    strength_data,
    target_data,
)


def test_headline_is_the_summary_of_the_headline_method_at_the_headline_kl_target(small):
    found = headline_data(small)
    assert found is not None
    assert found.effect == pytest.approx((0.7, 0.5, 0.9))
    assert found.ratio == pytest.approx((2.8, 2.3, 3.3))
    assert (found.method.label, found.kl_target, found.n_personas) == ("SAE features", 0.3, 2)


def test_null_is_beaten_on_a_persona_only_where_every_draw_is(small):
    small["null"][0]["largest"] = 0.55
    found = headline_data(small)
    assert found is not None
    # The mean over seeds is 0.5 on "warm" and 0.9 on "brave".
    assert (found.null.beyond, found.null.within) == (("brave",), ("warm",))
    assert (found.null.n_draws, found.null.largest_p) == (2, 0.25)


def test_target_curves_hold_the_targets_that_were_reached(small):
    small["summary"][0]["effect"] = None
    ours, theirs = target_data(small)
    assert (ours.method.name, ours.kl_targets) == ("ours", (0.3,))
    assert theirs.kl_targets == (0.1, 0.3)
    assert theirs.points[1] == pytest.approx((0.25, 0.05, 0.45))


def test_forest_puts_the_strongest_persona_first_and_averages_seeds(small):
    brave, warm = forest_data(small)
    assert (brave.persona, brave.own, warm.own) == ("brave", True, False)
    assert warm.headline.point == pytest.approx((0.5, 0.4, 0.6))
    assert warm.headline.seeds == (0.4, 0.6)
    assert warm.baseline.point == pytest.approx((0.2, 0.1, 0.3))
    assert warm.null == (0.05, -0.1)


def test_method_table_opens_with_headline_and_baseline_and_keeps_what_was_not_measured(small):
    small["areas"] = [{"method": "ours", "area": 0.5, "low": 0.4, "high": 0.6}]
    ours, theirs, chance = method_table(small)
    assert [row.method.name for row in (ours, theirs, chance)] == ["ours", "theirs", "chance"]
    assert ours.area == (0.5, 0.4, 0.6)
    assert ours.anti_steerable == pytest.approx(0.1 / 3)
    assert theirs.area.value is None
    assert chance.effects[0.3].value is None
    assert chance.n_personas is None


def test_missed_target_is_counted(small):
    ((method, kl_target, missed, measured),) = missed_targets(small)
    assert (method.name, kl_target, missed, measured) == ("chance", 0.3, 1, 1)


def test_strength_curve_is_the_mean_change_against_no_steering(small):
    small["curves"] = [
        {"persona": p, "method": "ours", "seed": 0, "multiple": m, "margin": base + gain * m}
        for p, base, gain in (("warm", 0.5, 1.0), ("brave", -0.2, 3.0))
        for m in (1.0, 0.0, -1.0)
    ]
    (found,) = strength_data(small)
    assert found.multiples == (-1.0, 0.0, 1.0)
    assert found.changes == pytest.approx((-2.0, 0.0, 2.0))
    assert found.n_personas == 2


def test_curve_without_an_unsteered_point_is_left_out(small):
    small["curves"] = [{"persona": "warm", "method": "ours", "multiple": 1.0, "margin": 2.0}]
    assert strength_data(small) == []


@pytest.mark.parametrize(
    "metrics", [{}, {"summary": None, "effects": [], "null": {}, "kl_targets": []}]
)
def test_nothing_measured_gives_no_data(metrics):
    assert headline_data(metrics) is None
    assert target_data(metrics) == forest_data(metrics) == method_table(metrics) == []
    assert strength_data(metrics) == missed_targets(metrics) == []
