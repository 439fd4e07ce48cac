"""Side effects, prose, secondary margins, judges and times, by hand."""

from __future__ import annotations

import pytest

from saesteer.report.costs import choice_data, judge_data, prose_data, side_effect_data, stage_data


def test_matrix_splits_the_target_from_the_others(small):
    small["side_effects"] = {
        "matrix": [
            {"method": "theirs", "personas": ["a", "b"], "values": [[1, 0], [0, 1]]},
            {"method": "ours", "personas": ["a", "b"], "values": [[0.8, -0.3], [None, 0.4]]},
        ]
    }
    ours, theirs = side_effect_data(small)
    assert (ours.method.label, theirs.method.name) == ("SAE features", "theirs")
    assert ours.target == pytest.approx(0.6)
    assert ours.others == pytest.approx(0.3)
    assert ours.values[1][0] is None


def test_matrix_that_is_not_square_is_left_out(small):
    for values in ([[1.0]], [[1.0, 2.0], [3.0]], []):
        matrix = {"method": "ours", "personas": ["a", "b"], "values": values}
        small["side_effects"] = {"matrix": [matrix]}
        assert side_effect_data(small) == []


def test_prose_loss_is_averaged_over_personas_and_keeps_the_worst(small):
    small["side_effects"] = {
        "prose": [
            {"persona": p, "method": "ours", "sign": s, "loss": 3.0, "change": c}
            for p, s, c in (("a", 1, 0.1), ("a", -1, 0.4), ("b", 1, 0.3), ("b", -1, None))
        ]
    }
    (row,) = prose_data(small)
    assert (row.minus, row.plus, row.worst, row.n_personas) == (0.4, pytest.approx(0.2), 0.4, 2)


def test_secondary_margins_say_where_the_model_is_at_chance(small):
    small["choices_margins"] = [
        {"persona": p, "method": "ours", "kind": "a_b", "base": 0.0, "plus": x, "minus": -0.2}
        | {"accuracy": 0.5, "at_chance": chance}
        for p, x, chance in (("a", 0.4, True), ("b", 0.6, False))
    ]
    (row,) = choice_data(small)
    assert row.shift == pytest.approx((0.5 + 0.2) / 2)
    assert (row.at_chance, row.n_personas, row.accuracy) == (1, 2, 0.5)


def test_judges_and_stages_are_listed():
    judges = judge_data({"judges": [{"persona": "self_pity", "auc": 0.9, "n_train": 20}]})
    assert judges == [("self pity", 0.9, 20, None)]
    stages = stage_data({"seconds": {"read": 3, "fit": 1.0, "odd": None}})
    assert stages == [("read", 3.0, 0.75), ("fit", 1.0, 0.25)]


def test_nothing_measured_gives_no_data():
    assert side_effect_data({}) == prose_data({}) == choice_data({}) == judge_data({}) == []
    assert stage_data({"seconds": {}}) == []
