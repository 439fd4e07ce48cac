"""The page as a file: whole, self-contained, and in words where something is absent."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from saesteer.report.page import report_page, write_report
from saesteer.utils.errors import OutputError


def _own(page: str) -> str:
    """Return the page without plotly's script."""
    return re.sub(r"<script>/\*\*\n\* plotly.*?</script>", "", page, flags=re.DOTALL)


def test_plotlys_script_is_embedded_once_and_nothing_is_fetched(made_up):
    page = report_page(made_up())
    assert page.count("* plotly.js v") == 1
    own = _own(page)
    assert len(own) < len(page) - 1_000_000
    assert re.findall(r"(?:src|srcset)\s*=", own) == []
    # The one link element is the empty icon, which keeps the browser from asking for one.
    assert re.findall(r"<link[^>]*>", own) == ['<link rel="icon" href="data:,">']
    assert "@import" not in own and "url(" not in own
    assert "default-src 'none'" in own


def test_empty_metrics_say_so_in_every_section():
    page = html.unescape(_own(report_page({})))
    for words in (
        "Nothing was summarised",
        "No effect was summarised at any KL target.",
        "No curve over strengths was measured.",
        "No persona's effect was measured",
        "No method was compared.",
        "No feature table was kept",
        "No generation was summarised.",
        "No completions were kept.",
        "No judge's AUC was kept.",
        "No side effects on other personas were measured.",
        "No loss on prose was measured.",
        "No Yes/No or A/B margins were measured.",
        "No times were kept.",
        "No settings were kept.",
    ):
        assert words in page
    assert "data-figure=" not in page


def test_headline_alone_makes_a_page(small):
    kept = ("headline_method", "baseline", "summary")
    page = _own(report_page({key: small[key] for key in kept}))
    assert "2.80 times" in page
    assert "No persona" in page


PARTS = (
    "methods",
    "personas",
    "effects",
    "curves",
    "summary",
    "areas",
    "null",
    "generation",
    "generation_summary",
    "judges",
    "choices_margins",
    "side_effects",
    "features",
    "linkage",
    "completions",
    "chosen",
    "config",
    "seconds",
    "kl_targets",
    "headline_method",
    "baseline",
)


@pytest.mark.parametrize("part", PARTS)
def test_any_part_may_be_empty_or_null(made_up, part):
    metrics = made_up(n_personas=2, n_methods=3, n_features=3)
    for nothing in (None, type(metrics[part])()):
        assert "</html>" in report_page({**metrics, part: nothing})


def test_nulls_in_every_record_are_shown_as_not_measured(made_up):
    def emptied(value: Any, depth: int = 0) -> Any:
        if isinstance(value, list):
            return [emptied(inner, depth + 1) for inner in value]
        if isinstance(value, dict):
            return {key: emptied(inner, depth + 1) for key, inner in value.items()}
        return None if isinstance(value, float) and depth > 1 else value

    metrics = emptied(made_up(n_personas=2, n_methods=3, n_features=3))
    metrics["side_effects"]["matrix"][0]["values"][0][0] = None
    assert "not measured" in report_page(metrics)


def test_every_marked_number_shows_its_value_rounded(made_up):
    page = _own(report_page(made_up(n_personas=3, n_methods=4, n_features=4)))
    found = re.findall(r'data-key="[^"]+" data-value="([^"]+)">([^<]*)<', page)
    assert len(found) > 100
    for value, text in found:
        digits = text.replace("\N{MINUS SIGN}", "-").removesuffix(" times")
        decimals = len(digits.partition(".")[2])
        assert float(digits) == pytest.approx(float(value), abs=0.5000001 * 10**-decimals, rel=0.05)


def test_model_text_is_escaped(made_up):
    own = _own(report_page(made_up(n_personas=2, n_methods=3, n_features=3, hostile=True)))
    assert "<script>window" not in own
    assert "<img" not in own
    assert "javascript:" not in own
    assert "{{ 7*7 }}" in own and "49 }}" not in own
    # Three scripts of the page's own making: figures, plotly (cut out here) and the page's.
    assert len(re.findall(r"<script", own)) == 2


def test_half_an_emoji_and_control_characters_do_not_stop_the_page(made_up, tmp_path):
    metrics = made_up(n_personas=1, n_methods=2, n_features=2)
    metrics["completions"]["agreeableness"][0]["text"] = "half \ud83d null \x00 bell \x07"
    page = write_report(metrics, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    assert "half ? null \N{REPLACEMENT CHARACTER} bell \N{REPLACEMENT CHARACTER}" in page


def test_page_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write_report({}, tmp_path / "file" / "report.html")


def test_figures_survive_as_json(made_up):
    own = _own(report_page(made_up(n_personas=2, n_methods=3, n_features=3, hostile=True)))
    embedded = re.search(r'id="figures">(.*?)</script>', own, flags=re.DOTALL)
    assert embedded is not None
    figures = json.loads(embedded[1])
    assert {"kl_targets", "strengths", "forest", "judge", "matrix-0", "tree-0"} <= set(figures)


def test_ten_megabytes_are_not_exceeded_by_a_full_comparison(made_up, tmp_path):
    assert write_report(made_up(), tmp_path / "report.html").stat().st_size < 10_000_000
