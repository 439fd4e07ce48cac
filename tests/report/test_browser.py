"""The page in a real browser: it draws, asks nothing of the network, shows the metrics' numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from saesteer.report.compare import compare_report
from saesteer.saes.neuronpedia import dashboard_url
from tests.report.made_up import made_up_metrics


class Opened(NamedTuple):
    """A page that is open in the browser, with the metrics it was made from."""

    browser: Any
    tab: str
    metrics: dict[str, Any]
    requests: list[str]
    messages: list[dict[str, Any]]


def _requests(browser) -> list[str]:
    """Return the addresses that were asked for since this was last asked."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def _until(holds: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(0.05)


def _open(browser, metrics, folder: Path) -> Opened:
    page = compare_report(metrics).write(folder / "report.html")
    browser.switch_to.new_window("tab")
    browser.get_log("browser")
    _requests(browser)
    browser.get(page.as_uri())
    _until(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
    tab, requests = browser.current_window_handle, _requests(browser)
    return Opened(browser, tab, metrics, requests, browser.get_log("browser"))


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory) -> Opened:
    """Return the full made-up comparison, open."""
    return _open(browser, made_up_metrics(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def hostile(browser, tmp_path_factory) -> Opened:
    """Return a small comparison full of markup, open."""
    metrics = made_up_metrics(n_personas=2, n_methods=3, n_features=4, hostile=True)
    return _open(browser, metrics, tmp_path_factory.mktemp("hostile"))


def _script(opened: Opened, code: str, *arguments: Any) -> Any:
    if opened.browser.current_window_handle != opened.tab:
        opened.browser.switch_to.window(opened.tab)
    return opened.browser.execute_script(code, *arguments)


def test_page_opens_without_a_console_message_or_a_request(report):
    assert report.messages == []
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
    for width in (900, 500):
        report.browser.set_window_size(width, 900)
        # Figures follow the window a moment later.
        _until(
            lambda w=width: _script(report, f"{beyond} + Math.max(0, innerWidth - {w})") <= 0, 10
        )
    report.browser.set_window_size(1280, 900)


def test_a_table_is_sorted_by_the_column_that_is_clicked(report):
    state = (
        "const h = [...document.querySelectorAll('th button')]"
        ".find(b => b.textContent === 'E at KL 0.3');"
        "const t = h.closest('table'), i = Number(h.dataset.sort); h.click();"
        "return [h.closest('th').getAttribute('aria-sort'),"
        " [...t.tBodies[0].rows].map(r => Number(r.cells[i].dataset.value))]"
    )
    effects = [row["effect"] for row in report.metrics["summary"] if row["kl_target"] == 0.3]
    assert _script(report, state) == ["descending", sorted(effects, reverse=True)]
    assert _script(report, state) == ["ascending", sorted(effects)]


def test_choosing_a_persona_shows_its_features_texts_and_tree(report):
    other = report.metrics["personas"][4]["name"]
    chosen = _script(
        report,
        "const all = [...document.querySelectorAll('select')].filter("
        "s => [...s.options].some(o => o.text === arguments[0]));"
        "all[0].value = [...all[0].options].find(o => o.text === arguments[0]).value;"
        "all[0].dispatchEvent(new Event('change'));"
        "return all.map(s => s.selectedOptions[0].text)",
        other,
    )
    assert chosen == [other, other]
    drawn = "return document.querySelectorAll('#figure-tree-4 svg.main-svg').length"
    _until(lambda: _script(report, drawn), 10)
    strongest = max(report.metrics["features"][other], key=lambda row: abs(row["weight"]))
    first = (
        "return document.getElementById('figure-tree-4').closest('[data-panel]')"
        ".querySelector('tbody tr').innerText"
    )
    assert str(strongest["feature"]) in _script(report, first)


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
    # In figures too.
    shown = _script(
        hostile,
        "return [...document.querySelectorAll('#figure-kl_targets .legendtext,"
        " #figure-tree-0 .ytick text, #figure-forest .legendtext')].map(e => e.textContent)",
    )
    assert any("<script>window.hacked" in text for text in shown)
    assert not any("&lt;" in text for text in shown)
    # The page itself refuses a script from elsewhere.
    _script(
        hostile,
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 9';"
        "document.body.append(s);",
    )
    assert _script(hostile, "return typeof window.hacked") == "undefined"


def test_figures_take_the_colours_of_the_page(hostile):
    ink = (
        "return [getComputedStyle(document.body).color,"
        " getComputedStyle(document.querySelector('#figure-forest .ytick text')).fill]"
    )
    for scheme in ("light", "dark"):
        theme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        hostile.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", theme)
        _until(lambda: len(set(_script(hostile, ink))) == 1, 10)
        red, green, blue = map(int, _script(hostile, ink)[0].strip("rgb()").split(","))
        assert (red + green + blue > 380) == (scheme == "dark")
    hostile.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_dashboard_is_asked_for_when_its_button_is_pressed(browser, tmp_path):
    url = dashboard_url("gpt2-small/6-res-jb", 9)
    metrics = made_up_metrics(n_personas=1, n_methods=2, n_features=1)
    metrics["features"]["agreeableness"][0].update(url=url)
    metrics["linkage"] = {"agreeableness": {}}
    opened = _open(browser, metrics, tmp_path)
    frames = "return [...document.querySelectorAll('iframe')].map(f => [f.src, f.sandbox.value])"
    assert _script(opened, frames) == []
    press = "document.querySelector('button[data-embed]').click()"
    _script(opened, press)
    online = _script(opened, "return navigator.onLine")
    sandbox = "allow-scripts allow-same-origin allow-popups"
    assert _script(opened, frames) == [[f"{url}?embed=true", sandbox]] * online
    if not online:
        assert "offline" in _script(opened, "return document.body.textContent")
    _script(opened, press)
    assert _script(opened, frames) == []
    assert all(one.startswith((url, "file:", "data:")) for one in _requests(browser))
