"""Dashboards in the page: only Neuronpedia's, and only when somebody asks for one."""

from __future__ import annotations

import json

import pytest

from saesteer.report.named_features import feature_data
from saesteer.report.page import report_page, write_report
from saesteer.saes.neuronpedia import dashboard_url


def _metrics(url: str | None) -> dict:
    row = {"feature": 9, "weight": 1.0, "cluster": 0, "description": "warm", "url": url}
    return {"features": {"warm": [row]}}


@pytest.mark.parametrize(
    "url",
    [None, "https://x.org/a/b/9", "https://www.neuronpedia.org.evil.org/9", "http://localhost/9"],
)
def test_only_neuronpedias_pages_can_be_embedded(url):
    metrics = _metrics(url)
    assert feature_data(metrics, "warm")[0].embed is None
    page = report_page(metrics)
    assert "frame-src" not in page and "data-embed=" not in page


def test_a_page_that_can_embed_says_so_and_allows_nothing_else():
    url = dashboard_url("gpt2-small/6-res-jb", 9)
    page = report_page(_metrics(url))
    assert f'data-embed="{url}?embed=true"' in page
    assert "default-src 'none'" in page
    assert page.count("frame-src") == 1
    assert "frame-src https://www.neuronpedia.org;" in page
    assert "<iframe" not in page


def test_a_dashboard_is_asked_for_when_its_button_is_pressed(browser, tmp_path):
    url = dashboard_url("gpt2-small/6-res-jb", 9)
    path = write_report(_metrics(url), tmp_path / "report.html")
    browser.switch_to.new_window("tab")
    browser.get(path.as_uri())
    browser.get_log("performance")
    frames = "return [...document.querySelectorAll('iframe')].map(f => [f.src, f.sandbox.value])"
    assert browser.execute_script(frames) == []
    press = "document.querySelector('button[data-embed]').click()"
    browser.execute_script(press)
    shown = browser.execute_script(frames)
    online = browser.execute_script("return navigator.onLine")
    assert shown == (
        [[f"{url}?embed=true", "allow-scripts allow-same-origin allow-popups"]] * online
    )
    if not online:
        assert "offline" in browser.execute_script("return document.body.textContent")
    browser.execute_script(press)
    assert browser.execute_script(frames) == []
    messages = [json.loads(entry["message"]) for entry in browser.get_log("performance")]
    asked = [
        message["message"]["params"]["request"]["url"]
        for message in messages
        if message["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert all(one.startswith((url, "file:", "data:")) for one in asked)
