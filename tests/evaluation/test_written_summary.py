"""Means and intervals are those of a plain bootstrap over questions."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.evaluation.written import WrittenRecord
from saesteer.evaluation.written_summary import summarise

MEASURES = ("sentiment", "nll", "rep4", "distinct2", "similarity")


def _record(question, sample, sign, judge, text="words", **measures):
    fields = dict.fromkeys(("sentiment", "nll", "rep4", "distinct2", "similarity"), 0.5)
    fields |= {"composite_proxy": 0.5} | measures
    return WrittenRecord(
        question=question, sample=sample, sign=sign, text=text, judge=judge, **fields
    )


def _records(n_questions=12, n_samples=3, seed=0):
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 2, n_questions)
    return [
        _record(q, s, sign, float(sign + own[q] + rng.normal(0, 0.3)))
        for q in range(n_questions)
        for s in range(n_samples)
        for sign in (1, -1, 0)
    ]


def _judged(records, sign):
    return [r.judge for r in records if r.sign == sign and r.judge is not None]


def test_means_and_range_are_plain_means():
    records = _records()
    summary = summarise(records, resamples=200)
    plus, minus, base = summary.signs
    assert plus.judge is not None and minus.judge is not None
    assert (plus.sign, minus.sign, base.sign) == (1, -1, 0)
    assert plus.judge == pytest.approx(np.mean(_judged(records, 1)))
    assert summary.judge_range == pytest.approx(plus.judge - minus.judge)
    assert (plus.n, plus.n_empty, plus.nll, plus.composite) == (36, 0, 0.5, 0.5)
    assert summary.right_direction is True
    assert summary.composite == 0.5


def test_intervals_are_those_of_whole_questions_drawn_again():
    records = _records()
    summary = summarise(records, resamples=20_000)
    value = {(r.question, r.sample, r.sign): r.judge for r in records}
    at = {s: np.array([[value[q, k, s] for k in range(3)] for q in range(12)]) for s in (1, -1)}
    drawn = np.random.default_rng(9).integers(0, 12, (20_000, 12))
    plus, minus = (at[s].mean(axis=1)[drawn].mean(axis=1) for s in (1, -1))
    low, high = np.percentile(plus, [2.5, 97.5])
    assert summary.signs[0].judge_low == pytest.approx(low, abs=0.05)
    assert summary.signs[0].judge_high == pytest.approx(high, abs=0.05)
    low, high = np.percentile(plus - minus, [2.5, 97.5])
    assert summary.low == pytest.approx(low, abs=0.01)
    assert summary.high == pytest.approx(high, abs=0.01)


def test_what_differs_between_questions_alone_does_not_widen_the_range():
    summary = summarise(_records(), resamples=2000)
    plus = summary.signs[0]
    assert None not in (summary.low, summary.high, plus.judge_low, plus.judge_high)
    assert np.subtract(summary.high, summary.low) < 0.3  # type: ignore[arg-type]
    assert np.subtract(plus.judge_high, plus.judge_low) > 1.0  # type: ignore[arg-type]


def test_missing_readings_are_in_no_mean_and_are_counted():
    records = _records()
    missing = dict.fromkeys(MEASURES)
    gone = _record(0, 3, 1, None, text=" ", **missing, composite_proxy=None)
    summary = summarise([*records, gone], resamples=500)
    plain = summarise(records, resamples=500)
    assert (summary.signs[0].n, summary.signs[0].n_empty) == (37, 1)
    assert summary.signs[0].judge == plain.signs[0].judge
    assert (summary.low, summary.high) == (plain.low, plain.high)
    assert summary.composite == plain.composite


def test_a_sign_of_nothing_but_empty_completions_has_no_figures():
    records = [r for r in _records() if r.sign >= 0]
    blank = {**dict.fromkeys(MEASURES), "composite_proxy": None}
    records += [_record(q, 0, -1, None, text="", **blank) for q in range(12)]
    summary = summarise(records, resamples=200)
    minus = summary.of(-1)
    assert minus is not None and (minus.n, minus.n_empty) == (12, 12)
    assert (minus.judge, minus.judge_low, minus.nll, minus.composite) == (None,) * 4
    assert (summary.judge_range, summary.low, summary.right_direction) == (None,) * 3


def test_one_sign_alone_has_no_range():
    summary = summarise([r for r in _records() if r.sign != -1], resamples=200)
    assert summary.judge_range is None and summary.right_direction is None
    assert summary.of(-1) is None
    assert summary.composite == 0.5


@pytest.mark.parametrize(("plus", "minus"), [(0.0, -1.0), (1.0, 0.5), (-1.0, 1.0)])
def test_the_wrong_direction_of_either_sign_is_wrong(plus, minus):
    records = [_record(q, 0, s, x) for q in range(4) for s, x in ((1, plus), (-1, minus), (0, 0.1))]
    assert summarise(records, resamples=100).right_direction is False


def test_the_composite_is_of_the_steered_completions():
    records = [
        _record(q, 0, sign, 0.0, composite_proxy=value)
        for q in range(3)
        for sign, value in ((1, 0.2), (-1, 0.4), (0, 0.9))
    ]
    assert summarise(records, resamples=100).composite == pytest.approx(0.3)


def test_one_question_and_none_at_all():
    one = summarise([_record(0, 0, s, float(s)) for s in (1, -1, 0)], resamples=100)
    assert (one.judge_range, one.low, one.high) == (2.0, 2.0, 2.0)
    none = summarise([])
    assert none.signs == () and none.judge_range is None and none.composite is None


def test_the_same_seed_gives_the_same_interval():
    records = _records()
    assert summarise(records, seed=1) == summarise(records, seed=1)
    assert summarise(records, seed=1).low != summarise(records, seed=2).low
