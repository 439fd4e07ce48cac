"""The comparison's report: its numbers are the metrics', its headline claims no more."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from saesteer.report.compare import compare_report, strength_changes
from saesteer.report.comparison import Comparison
from saesteer.report.layout import Described, Table, Text, Texts
from saesteer.report.report import Report
from saesteer.report.terminal import console
from saesteer.report.wording import Estimate, show
from saesteer.saes.neuronpedia import dashboard_url
from tests.report.made_up import made_up_metrics


def table(report: Report, column: str) -> Table:
    """Return the first table that has a column."""
    return next(t for t in report.items() if isinstance(t, Table) and column in t.columns)


def column(found: Table, name: str) -> list[Any]:
    return [row[list(found.columns).index(name)] for row in found.rows]


def notes(report: Report) -> list[str]:
    return [item.text for item in report.items() if isinstance(item, Text)]


def headline(small, **changes) -> Comparison:
    row = next(r for r in small["summary"] if (r["method"], r["kl_target"]) == ("ours", 0.3))
    row.update(changes)
    return Comparison(small)


def test_clear_win_is_said_plainly(small):
    found = headline(small)
    assert found.lead() == (
        "With SAE features, held-out statements of 2 personas move by 0.70 nats per token at KL "
        "0.3 (95% interval 0.50 to 0.90), 2.80 times as far as with difference in means (95% "
        "interval 2.30 to 3.30)."
    )
    assert [remark.verdict for remark in found.remarks()] == ["good"] * 3
    assert "Beyond every one of 2 random draws" in found.remarks()[2].text


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"ratio": 1.1, "ratio_low": 0.8}, "open", "includes 1: not shown to move them further"),
        ({"p_holm": 0.12}, "open", "does not confirm it (Wilcoxon over personas, Holm: p = 0.12)"),
        ({"ratio": 0.7, "ratio_low": 0.5, "ratio_high": 0.9}, "bad", "less far"),
        ({"ratio": None}, "open", "There is no ratio to difference in means"),
        ({"ratio_low": None}, "open", "has no interval"),
        ({"effect": 0.1, "low": -0.1}, "bad", "does not show that it steers"),
        ({"effect": -0.3, "low": -0.4, "high": -0.2}, "bad", "against the intended direction"),
        ({"low": None, "high": None}, "open", "this says nothing of other personas"),
    ],
)
def test_what_the_intervals_do_not_show_is_not_claimed(small, changes, verdict, words):
    remarks = headline(small, **changes).remarks()
    assert [r.verdict for r in remarks if words in r.text] == [verdict]


def test_a_target_that_was_not_reached_is_the_headline(small):
    found = headline(small, effect=None, low=None, high=None)
    assert "KL 0.3 was not reached" in found.lead()


def test_a_null_that_was_not_beaten_is_named_by_persona(small):
    small["null"][0]["effects"] = [0.55]
    # The mean over seeds is 0.5 on "warm" and 0.9 on "brave".
    assert Comparison(small).beyond_null() == (["brave"], ["warm"])
    remark = headline(small).remarks()[2]
    assert remark.verdict == "open" and "on 1 of 2" in remark.text
    assert remark.text.endswith("not on warm.")
    small["null"] = []
    assert "chance is not ruled out" in headline(small).remarks()[2].text


def test_methods_open_with_headline_and_baseline_and_keep_what_was_not_measured(small):
    small["areas"] = [{"method": "ours", "area": 0.5, "low": 0.4, "high": 0.6}]
    report = compare_report(small)
    found = table(report, "anti-steerable")
    assert [mark.text for mark in column(found, "method")] == [
        *("SAE features", "difference in means", "random direction"),
    ]
    assert column(found, "area") == [Estimate(0.5, 0.4, 0.6), None, None]
    baseline, chance = column(found, "E at KL 0.3")[1:]
    assert baseline == pytest.approx((0.25, 0.05, 0.45)) and chance == (None, None, None)
    assert column(found, "anti-steerable")[0] == pytest.approx(0.1 / 3)
    note = next(section for section in report.sections if section.title == "All methods").note
    assert note == "KL target not reached: random direction at KL 0.3 (1 of 1)."


def test_personas_stand_by_strength_and_average_seeds(small):
    found = Comparison(small)
    assert list(found.own_effects) == ["brave", "warm"]
    estimate, seeds = found.persona_effect("warm", "ours")
    assert estimate == pytest.approx((0.5, 0.4, 0.6)) and seeds == [0.4, 0.6]
    figure: Any = compare_report(small).figures["forest"]
    drawn = {trace.name: list(trace.x) for trace in figure.data if trace.error_x.array is not None}
    assert drawn["SAE features"] == pytest.approx([0.9, 0.5])
    assert drawn["difference in means"] == pytest.approx([0.3, 0.2])


def test_a_strength_curve_is_the_mean_change_against_no_steering(small):
    small["curves"] = [
        {"persona": p, "method": "ours", "seed": 0, "multiple": m, "margin": base + gain * m}
        for p, base, gain in (("warm", 0.5, 1.0), ("brave", -0.2, 3.0))
        for m in (1.0, 0.0, -1.0)
    ]
    # Without an unsteered point there is no change.
    small["curves"].append(
        {"persona": "warm", "method": "theirs", "seed": 0, "multiple": 1.0, "margin": 2.0}
    )
    changes = {row["multiple"]: row["ours"] for row in strength_changes(small)}
    assert changes == pytest.approx({-1.0: -2.0, 0.0: 0.0, 1.0: 2.0})
    assert all("theirs" not in row for row in strength_changes(small))


def test_side_effects_split_the_target_from_the_others(small):
    small["side_effects"] = {
        "matrix": [
            {"method": "ours", "personas": ["a", "b"], "values": [[0.8, -0.3], [None, 0.4]]}
        ],
        "prose": [
            {"persona": p, "method": "ours", "sign": s, "loss": 3.0, "change": c}
            for p, s, c in (("a", 1, 0.1), ("a", -1, 0.4), ("b", 1, 0.3), ("b", -1, None))
        ],
    }
    report = compare_report(small)
    assert table(report, "others / target").rows[0][1:] == pytest.approx([0.6, 0.3, 0.5])
    assert table(report, "worst").rows[0][1:] == [0.4, pytest.approx(0.2), 0.4, 2]
    matrix: Any = report.figures["matrix-0"]
    assert matrix.data[0].z[1][0] is None


def test_secondary_margins_say_where_the_model_is_at_chance(small):
    small["choices_margins"] = [
        {"persona": p, "method": "ours", "kind": "a_b", "base": 0.0, "plus": x, "minus": -0.2}
        | {"accuracy": 0.5, "at_chance": chance}
        for p, x, chance in (("a", 0.4, True), ("b", 0.6, False))
    ]
    (row,) = table(compare_report(small), "at chance").rows
    assert row[0] == "A / B" and row[-1] == "1 of 2"
    assert row[2:7] == pytest.approx([0.0, -0.2, 0.5, 0.35, 0.5])


def test_a_language_model_judges_ratings_are_averaged_without_those_that_are_missing(small):
    rating = {"method": "ours", "sign": 1, "instruction": 2.0, "n": 4, "harmonic_mean": None}
    small["generation_summary"] = [
        {"method": "ours", "kl_target": 0.3, "judge_range": 2.0, "low": 1.0, "high": 3.0}
        | {"ratio": None, "ratio_low": None, "ratio_high": None, "right_direction": 2}
        | {"n_personas": 2, "composite": 0.5}
    ]
    small["llm_judge"] = [
        {**rating, "persona": "a", "behaviour": 1.0, "fluency": None, "n_missing": 1},
        {**rating, "persona": "b", "behaviour": 2.0, "fluency": 1.0, "n_missing": 0},
    ]
    (row,) = table(compare_report(small), "harmonic mean").rows
    assert row[1:] == ["positive", 1.5, 2.0, 1.0, None, 8, 1]


def test_masked_ranges_and_those_at_the_prompts_kl_stand_beside_the_others():
    metrics = made_up_metrics(n_personas=2, n_methods=2, n_features=3)
    report = compare_report(metrics)
    masked, prompted = (table(report, name) for name in ("masked", "ratio to the prompt"))
    assert [value.value for value in column(masked, "masked")] == [
        row["masked_judge_range"] for row in metrics["masked"]
    ]
    assert column(prompted, "judge") == ["those that count", "smollm2"] * 2
    # A folder of an earlier version has neither.
    del metrics["masked"], metrics["at_prompt"]
    assert compare_report(metrics).sections


def test_texts_run_from_the_most_negative_strength_to_the_most_positive():
    metrics = made_up_metrics(n_personas=1, n_methods=3, n_features=3)
    texts = next(item for item in compare_report(metrics).items() if isinstance(item, Texts))
    columns = texts.rows["SAE features, attribution"]
    assert list(columns) == [
        f"strength {show(s, '+.2f')}" if s else "no steering"
        for s in (-0.31, -0.16, 0.0, 0.14, 0.28)
    ]
    judged = [row for row in metrics["completions"]["agreeableness"] if row["strength"] == 0.28]
    (said,) = columns["strength +0.28"]
    assert said.judge is not None and said.judge.value == judged[0]["judge"]


def features(**fields: Any) -> list[dict[str, Any]]:
    shared = {"firing_positive": 0.2, "firing_negative": 0.1, "score": 1.0, "contexts": []}
    shared |= {"url": None, **fields}
    return [
        {"feature": f, "weight": w, "cluster": c, "description": d, **shared}
        for f, w, c, d in ((7, 0.2, 1, "seven"), (8, -0.9, 0, "eight"), (9, 0.0, 1, "nine"))
    ]


def test_the_strongest_feature_comes_first_and_its_texts_are_cut_at_the_token(small):
    contexts = [
        {"text": "so so good", "token": "so", "activation": 2.0},
        {"text": "no", "token": "x", "activation": 1.0},
    ]
    small["features"] = {"warm": features(contexts=contexts)}
    small["linkage"] = {"warm": {}}
    report = compare_report(small)
    found = table(report, "description")
    assert column(found, "feature") == [8, 7, 9]
    described = column(found, "description")[0]
    assert isinstance(described, Described) and described.text == "eight"
    # Of two places the one further back is meant.
    assert described.contexts[0] == ("so ", "so", " good", 2.0)
    assert described.contexts[1] == ("no", "", "", 1.0)
    assert "No cluster tree was kept (a method that joins no clusters has none)." in notes(report)
    # One leaf alone is nothing that scipy could draw.
    small["linkage"] = {"warm": {"linkage": [], "labels": [7], "clusters": [0]}}
    report = compare_report(small)
    assert "tree-0" not in report.figures
    assert any("needs two features" in note for note in notes(report))


def test_a_tree_joins_what_scipy_joined_and_colours_pure_clusters(small):
    small["features"] = {"warm": features()}
    joined = linkage([[0.0], [5.0], [1.0]])
    small["linkage"] = {
        "warm": {"linkage": joined.tolist(), "labels": [7, 8, 9], "clusters": [1, 0, 1]}
    }
    figure: Any = compare_report(small).figures["tree-0"]
    leaves = [text.split()[0] for text in figure.layout.yaxis.ticktext]
    traces = {trace.name: trace for trace in figure.data if trace.mode == "lines"}
    assert max(x for x in traces["cluster 1"].x if x is not None) == 1.0
    assert max(x for x in traces["between clusters"].x if x is not None) == 4.0
    # The join at 1.0 spans its own two leaves.
    heights = {int(y) for y in traces["cluster 1"].y if y is not None}
    assert {leaves[y] for y in heights} == {"7", "9"}


def test_a_page_embeds_neuronpedias_pages_alone_and_says_so(small):
    def page(url: str | None) -> str:
        shown = {"features": {"warm": features(url=url)}, "linkage": {"warm": {}}}
        return compare_report({**small, **shown}).to_html()

    for other in ("https://x.org/a/b/9", "https://www.neuronpedia.org.evil.org/9", None):
        assert "frame-src" not in page(other) and "data-embed=" not in page(other)
    url = dashboard_url("gpt2-small/6-res-jb", 9)
    found = page(url)
    assert f'data-embed="{url}?embed=true"' in found
    assert found.count("frame-src") == 1 and "frame-src https://www.neuronpedia.org;" in found
    assert "<iframe" not in found


def numbers(record: Any) -> list[float]:
    """Return every number of a record that is no count, flag or setting."""
    if isinstance(record, dict):
        return [n for key, value in record.items() if key != "config" for n in numbers(value)]
    if isinstance(record, list):
        return [n for value in record for n in numbers(value)]
    return [record] if isinstance(record, float) else []


def test_every_number_of_the_metrics_is_on_the_page_and_rounded_as_it_is():
    metrics = made_up_metrics(n_personas=3, n_methods=4, n_features=4)
    page = compare_report(metrics).to_html()
    page = re.sub(r"<script>/\*\*\n\* plotly.*?</script>", "", page, flags=re.DOTALL)
    shown = {float(n) for n in re.findall(r'data-(?:value|low|high)="(-?[\d.e-]+)"', page)}
    drawn = re.search(r'id="figures">(.*?)</script>', page, flags=re.DOTALL)
    assert drawn is not None
    shown |= set(numbers(json.loads(drawn[1])))
    for part in ("effects", "summary", "areas", "generation_summary", "judges", "seconds", "null"):
        for number in numbers(metrics[part]):
            assert any(np.isclose(number, list(shown), rtol=1e-9, atol=1e-12)), (part, number)
    cells = re.findall(r'<td[^>]*data-value="([^"]*)">(?:<span class="value">)?([^<]+)<', page)
    assert len(cells) > 300
    for value, text in cells:
        digits = text.strip().replace("\N{MINUS SIGN}", "-")
        scale = 100 if digits.endswith("%") else 1
        decimals = len(digits.rstrip("%").partition(".")[2])
        exact = pytest.approx(scale * float(value), abs=0.50001 * 10**-decimals, rel=0.05)
        assert float(digits.rstrip("%")) == exact


def test_a_full_comparison_stays_small_and_the_terminal_shows_every_method(capsys):
    metrics = made_up_metrics()
    metrics["methods"][2]["label"] = "[bold]ours[/bold] " + "very " * 20
    report = compare_report(metrics)
    assert len(report.to_html()) < 10_000_000
    report.print(console())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "[bold]ours[/bold]" in " ".join(out.split())
    for row in metrics["summary"]:
        if row["kl_target"] == 0.3:
            assert f"{row['effect']:.3f}".replace("-", "\N{MINUS SIGN}") in out


def test_the_curve_says_how_many_features_reach_the_baseline(small):
    ratios = {1: 0.95, 2: 0.4, 8: 0.92, 32: 1.1}
    names = {n: f"attributed_sae_{n}" for n in ratios}
    model = next(r for r in small["summary"] if (r["method"], r["kl_target"]) == ("ours", 0.3))
    small["methods"] += [{"name": m, "label": f"{n}", "kind": "sae"} for n, m in names.items()]
    small["summary"] += [
        {**model, "method": names[n], "ratio": ratio, "kl_target": target}
        for n, ratio in ratios.items()
        for target in small["kl_targets"]
    ]
    ours = [row for row in small["effects"] if row["method"] == "ours"]
    small["effects"] += [{**row, "method": name} for name in names.values() for row in ours]
    report = compare_report(small)
    said = [remark.text for remark in report.remarks]
    # That one feature did as well says nothing while two do not.
    assert "90% of the effect of difference in means takes 8 features or more." in said
    assert column(table(report, "features"), "features") == [1, 2, 8, 32, "difference in means"]
    drawn: Any = report.figures["features-effect"].data
    lines = [line for line in drawn if line.mode == "lines+markers"]
    # A persona each, with the baseline apart at its end.
    assert [list(line.x) for line in lines] == [[1, 2, 8, 32, 128]] * len(small["personas"])
    assert "features-effect" not in compare_report(made_up_metrics(2, 2)).figures
