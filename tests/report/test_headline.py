"""The headline claims no more than its intervals allow."""

from __future__ import annotations

from saesteer.report.effects import Headline, headline_data
from saesteer.report.headline import headline_remarks, headline_text


def _headline(small, **changes) -> Headline:
    row = next(r for r in small["summary"] if r["method"] == "ours" and r["kl_target"] == 0.3)
    row.update(changes)
    found = headline_data(small)
    assert found is not None
    return found


def _verdicts(data):
    return [remark.verdict for remark in headline_remarks(data)]


def test_clear_win_is_said_plainly(small):
    data = _headline(small)
    assert headline_text(data) == (
        "With SAE features, held-out statements of 2 personas move by 0.70 nats per token at KL "
        "0.3 (95% interval 0.50 to 0.90), 2.80 times as far as with difference in means (95% "
        "interval 2.30 to 3.30)."
    )
    assert _verdicts(data) == ["good", "good", "good"]
    assert "Beyond every one of 2 random draws" in headline_remarks(data)[2].text


def test_ratio_interval_with_one_in_it_is_no_win(small):
    data = _headline(small, ratio=1.1, ratio_low=0.8, ratio_high=1.4)
    remark = headline_remarks(data)[1]
    assert remark.verdict == "open"
    assert "includes 1: not shown to move them further than difference in means" in remark.text


def test_paired_test_that_disagrees_keeps_the_win_open(small):
    remark = headline_remarks(_headline(small, p_holm=0.12))[1]
    assert remark.verdict == "open"
    assert "does not confirm" in remark.text and "p = 0.12" in remark.text


def test_ratio_below_one_is_said_to_be_less(small):
    remark = headline_remarks(_headline(small, ratio=0.7, ratio_low=0.5, ratio_high=0.9))[1]
    assert (remark.verdict, "less far" in remark.text) == ("bad", True)


def test_missing_ratio_and_missing_interval_are_said(small):
    no_ratio = _headline(small, ratio=None, ratio_low=None, ratio_high=None)
    assert "times" not in headline_text(no_ratio)
    assert "no ratio" in headline_remarks(no_ratio)[1].text
    no_interval = _headline(small, ratio=3.0, ratio_low=None, ratio_high=None)
    assert "3.00 times" in headline_text(no_interval)
    assert "has no interval" in headline_remarks(no_interval)[1].text


def test_effect_interval_with_zero_in_it_does_not_steer(small):
    data = _headline(small, effect=0.1, low=-0.1, high=0.3)
    assert "does not show that it steers" in headline_remarks(data)[0].text
    against = _headline(small, effect=-0.3, low=-0.4, high=-0.2)
    assert "against the intended direction" in headline_remarks(against)[0].text


def test_target_not_reached_is_the_headline(small):
    data = _headline(small, effect=None, low=None, high=None)
    assert "KL 0.3 was not reached" in headline_text(data)


def test_null_not_beaten_is_named_by_persona(small):
    small["null"][0]["largest"] = 5.0
    remark = headline_remarks(_headline(small))[2]
    assert remark.verdict == "open"
    assert "on 1 of 2" in remark.text and remark.text.endswith("not on warm.")
    small["null"] = []
    assert "chance is not ruled out" in headline_remarks(_headline(small))[2].text


def test_one_persona_says_nothing_of_others(small):
    data = _headline(small, n_personas=1, low=None, high=None)
    assert "one persona" in headline_text(data)
    assert "nothing of other personas" in headline_remarks(data)[0].text
