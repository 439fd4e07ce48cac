"""The page in a real browser: it draws, asks nothing of the network, shows the metrics' numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from saesteer.report import write_report

MINUS = "\N{MINUS SIGN}"


class Opened(NamedTuple):
    """A page that is open in the browser, with the metrics it was made from."""

    browser: Any
    tab: str
    metrics: dict[str, Any]
    requests: list[str]
    messages: list[dict[str, Any]]


def _until(holds: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(0.05)


def _open(browser, metrics, folder: Path) -> Opened:
    page = write_report(metrics, folder / "report.html")
    browser.switch_to.new_window("tab")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())
    _until(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return Opened(
        browser, browser.current_window_handle, metrics, requests, browser.get_log("browser")
    )


@pytest.fixture(scope="module")
def report(browser, made_up, tmp_path_factory) -> Opened:
    """Return the full made-up comparison, open."""
    return _open(browser, made_up(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def hostile(browser, made_up, tmp_path_factory) -> Opened:
    """Return a small comparison full of markup, open."""
    metrics = made_up(n_personas=2, n_methods=3, n_features=4, hostile=True)
    return _open(browser, metrics, tmp_path_factory.mktemp("hostile"))


def _script(opened: Opened, code: str, *arguments: Any) -> Any:
    if opened.browser.current_window_handle != opened.tab:
        opened.browser.switch_to.window(opened.tab)
    return opened.browser.execute_script(code, *arguments)


def test_page_opens_without_a_console_message(report):
    assert report.messages == []


def test_no_request_leaves_the_page(report):
    assert len(report.requests) >= 1
    assert {url.partition(":")[0] for url in report.requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in report.requests) == 1
    assert _script(report, "return performance.getEntriesByType('resource').length") == 0


def test_every_visible_figure_is_drawn_as_wide_as_its_place(report):
    drawn = _script(
        report,
        "return [...document.querySelectorAll('[data-figure]')]"
        ".filter(e => e.offsetParent !== null)"
        ".map(e => [e.id, e.querySelectorAll('svg.main-svg').length,"
        " e.querySelector('svg.main-svg').getBoundingClientRect().width, e.clientWidth])",
    )
    assert {name for name, *_ in drawn} == {
        "figure-kl_targets",
        "figure-strengths",
        "figure-forest",
        "figure-tree-0",
        "figure-judge",
        "figure-matrix-0",
    }
    for _, layers, width, place in drawn:
        assert layers >= 1
        assert width == pytest.approx(place, abs=2)


def test_page_does_not_scroll_sideways_on_a_small_screen_either(report):
    beyond = "return document.documentElement.scrollWidth - innerWidth"
    assert _script(report, beyond) <= 0
    report.browser.set_window_size(900, 900)
    # Figures follow the window a moment later.
    _until(lambda: _script(report, beyond) <= 0 and _script(report, "return innerWidth") <= 900, 10)
    report.browser.set_window_size(1280, 900)


def test_numbers_shown_are_those_of_the_metrics(report):
    shown = _script(
        report,
        "return [...document.querySelectorAll('main [data-key]')]"
        ".map(e => [e.dataset.key, e.dataset.value, e.textContent])",
    )
    summary = {(r["method"], f"{r['kl_target']:g}"): r for r in report.metrics["summary"]}
    judged = {(r["method"], f"{r['kl_target']:g}"): r for r in report.metrics["generation_summary"]}
    areas = {r["method"]: r for r in report.metrics["areas"]}
    checked = 0
    for key, value, text in shown:
        part, *place = key.split("/")
        if part in ("summary", "generation_summary"):
            row = (summary if part == "summary" else judged)[place[0], place[1]]
        elif part == "areas":
            row = areas[place[0]]
        else:
            continue
        expected = row[place[-1]]
        assert float(value) == pytest.approx(expected, abs=1e-12), key
        digits = text.replace(MINUS, "-").removesuffix(" times")
        decimals = len(digits.partition(".")[2])
        assert float(digits) == pytest.approx(expected, abs=0.50001 * 10**-decimals, rel=0.05), key
        checked += 1
    # 12 methods at 3 KL targets, each with effect, low and high, and more.
    assert checked > 12 * 3 * 3


def test_drawn_effects_are_those_of_the_metrics(report):
    traces = _script(
        report,
        "return document.getElementById('figure-kl_targets').data"
        ".filter(t => t.name).map(t => [t.name, [...t.x], [...t.y]])",
    )
    labels = {method["name"]: method["label"] for method in report.metrics["methods"]}
    drawn = {name: dict(zip(x, y, strict=True)) for name, x, y in traces}
    for row in report.metrics["summary"]:
        assert drawn[labels[row["method"]]][row["kl_target"]] == pytest.approx(row["effect"])


def test_choosing_a_persona_shows_its_features_texts_and_tree(report):
    other = report.metrics["personas"][4]["name"]
    _script(
        report,
        "const s = document.querySelector('select[data-choose=persona]'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('change'));",
        other,
    )
    panels = _script(
        report,
        "return [...document.querySelectorAll('[data-panel=persona]')]"
        ".filter(e => e.offsetParent !== null).map(e => e.dataset.value)",
    )
    assert panels == [other, other]
    assert _script(
        report,
        "return [...document.querySelectorAll('select[data-choose=persona]')].map(s=>s.value)",
    ) == [other, other]
    drawn = "return document.querySelectorAll('#figure-tree-4 svg.main-svg').length"
    _until(lambda: _script(report, drawn), 10)
    strongest = max(report.metrics["features"][other], key=lambda row: abs(row["weight"]))
    first = "return document.querySelector(`[data-value='${arguments[0]}'] tbody tr`).innerText"
    assert str(strongest["feature"]) in _script(report, first, other)


def test_open_all_shows_every_context(report):
    state = (
        "const p = [...document.querySelectorAll('#features [data-panel]')]"
        ".find(e => !e.hidden); p.querySelector('[data-open]').click();"
        "return [...p.querySelectorAll('details')].map(d => d.open)"
    )
    assert set(_script(report, state)) == {True}
    assert set(_script(report, state)) == {False}


def test_hostile_text_is_shown_as_text_and_runs_nowhere(hostile):
    assert hostile.messages == []
    assert _script(hostile, "return typeof window.hacked") == "undefined"
    assert _script(hostile, "return document.images.length") == 0
    assert _script(hostile, "return document.scripts.length") == 3
    text = hostile.metrics["name"]
    assert _script(hostile, "return document.querySelector('h1').textContent") == text
    said = "return [...document.querySelectorAll('.said')].map(e => e.textContent)"
    assert text in _script(hostile, said)
    marked = "return [...document.querySelectorAll('mark')].map(e => e.textContent)"
    assert text in _script(hostile, marked)
    links = _script(hostile, "return [...document.links].map(a => a.protocol)")
    assert set(links) <= {"file:", "https:"}


def test_hostile_text_in_figures_is_text(hostile):
    code = (
        "return [...document.querySelectorAll('#figure-kl_targets .legendtext,"
        " #figure-tree-0 .ytick text, #figure-forest .legendtext')].map(e => e.textContent)"
    )
    shown = _script(hostile, code)
    assert any("<script>window.hacked" in text for text in shown)
    assert not any("&lt;" in text for text in shown)


def test_script_from_elsewhere_is_refused_by_the_page_itself(hostile):
    _script(
        hostile,
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 9';"
        "document.body.append(s);",
    )
    assert _script(hostile, "return typeof window.hacked") == "undefined"


def test_empty_metrics_open_without_a_console_message(browser, tmp_path):
    opened = _open(browser, {}, tmp_path)
    assert opened.messages == []
    assert "Nothing was summarised" in _script(opened, "return document.body.innerText")
