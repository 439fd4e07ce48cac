"""Texts stand in the order of their strengths, the judge's figures are the metrics'."""

from __future__ import annotations

import pytest

from saesteer.report.written import (
    completion_data,
    judge_scale,
    judge_spans,
    llm_means,
    written_means,
    written_table,
)


def _text(method, strength, text, judge=None, question="Why?"):
    sign = (strength > 0) - (strength < 0)
    return {"question": question, "method": method, "strength": strength, "sign": sign} | {
        "text": text,
        "judge": judge,
    }


def _line(persona, method, sign, judge, kl_target: float | None = 0.3):
    return {
        "persona": persona,
        "method": method,
        "kl_target": kl_target,
        "sign": sign,
        "judge": judge,
    }


def test_texts_run_from_the_most_negative_strength_to_the_most_positive(small):
    small["completions"] = {
        "warm": [
            _text("ours", 0.5, "b"),
            _text("ours", -1.0, "z"),
            _text("ours", -0.2, "y"),
            _text("ours", 0.0, "o"),
            _text("ours", 0.5, "b2"),
        ]
    }
    (question,) = completion_data(small, "warm")
    (row,) = question.methods
    columns = [[one.text for one in column] for column in row.columns]
    assert columns == [["z"], ["y"], ["o"], ["b", "b2"]]


def test_base_texts_stand_in_every_methods_row(small):
    small["completions"] = {
        "warm": [
            _text("theirs", 1.0, "t"),
            _text("ours", 1.0, "u"),
            _text(None, 0.0, "base"),
            _text("ours", 1.0, "other", question="How?"),
        ]
    }
    why, how = completion_data(small, "warm")
    assert [row.method.name for row in why.methods] == ["ours", "theirs"]
    assert [row.columns[0][0].text for row in why.methods] == ["base", "base"]
    assert len(how.methods[0].columns) == 1


def test_texts_without_any_steering_are_shown_as_such(small):
    small["completions"] = {"warm": [_text("ours", 0.0, "o")]}
    assert completion_data(small, "warm")[0].methods[0].method.label == "no steering"


def test_judge_bar_is_as_long_as_the_largest_reading(small):
    small["completions"] = {"warm": [_text("ours", 1.0, "a", -3.0), _text("ours", 2.0, "b", 2.0)]}
    assert judge_scale(completion_data(small, "warm")) == 3.0
    assert judge_scale([]) == 1.0


def test_spans_are_of_headline_and_baseline_at_the_headline_kl_target(small):
    small["generation"] = [
        _line("warm", "ours", 1, 9.0, kl_target=0.1),
        _line("warm", "ours", 1, 2.0),
        _line("warm", "ours", -1, -1.5),
        _line("warm", "ours", 0, 0.5, kl_target=None),
        _line("warm", "chance", 1, 0.0),
        _line("warm", "chance", -1, 0.0),
        _line("brave", "theirs", 1, 1.0),
    ]
    (span,) = judge_spans(small)
    assert (span.method.name, span.persona) == ("ours", "warm")
    assert (span.minus.value, span.base.value, span.plus.value) == (-1.5, 0.5, 2.0)


def test_text_figures_are_means_over_personas(small):
    small["generation"] = [_line("warm", "ours", 1, 2.0), _line("brave", "ours", 1, 1.0)]
    (row,) = written_means(small)
    assert (row.sign, row.judge, row.nll, row.n_personas) == (1, pytest.approx(1.5), None, 2)


def test_summary_goes_by_method_then_target(small):
    small["generation_summary"] = [
        {"method": m, "kl_target": b, "judge_range": r, "low": r - 1, "high": r + 1}
        for m, b, r in (("theirs", 0.3, 2.0), ("ours", 0.3, 3.0), ("ours", 0.1, 1.0))
    ]
    found = [
        (row.method.name, row.kl_target, row.judge_range.value) for row in written_table(small)
    ]
    assert found == [("ours", 0.1, 1.0), ("ours", 0.3, 3.0), ("theirs", 0.3, 2.0)]


def test_nothing_written_gives_no_data():
    assert judge_spans({}) == written_table({}) == written_means({}) == []
    assert completion_data({}, "warm") == []


def test_a_language_model_judges_ratings_are_averaged_over_personas():
    rating = {"method": "mine", "sign": 1, "instruction": 2.0, "n": 4}
    metrics = {
        "methods": [{"name": "mine", "label": "mine", "kind": "sae"}],
        "llm_judge": [
            {**rating, "persona": "a", "behaviour": 1.0, "fluency": None, "n_missing": 1},
            {**rating, "persona": "b", "behaviour": 2.0, "fluency": 1.0, "n_missing": 0},
        ],
    }
    (row,) = llm_means(metrics)
    assert (row.method.name, row.sign, row.n, row.n_missing) == ("mine", 1, 8, 1)
    # A missing rating lowers no mean.
    assert (row.behaviour, row.instruction, row.fluency) == (1.5, 2.0, 1.0)
    assert row.harmonic_mean is None
    assert llm_means({**metrics, "llm_judge": []}) == []
