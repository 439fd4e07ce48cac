"""The general page: escaped, offline, and drawn in a real browser."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import pytest

from saesteer.report.sheet import (
    Drawing,
    Part,
    Remark,
    Sheet,
    Table,
    Texts,
    sheet_page,
    write_sheet,
)
from saesteer.utils.errors import OutputError

EVIL = "<script>window.hit = 1</script>"


def sheet(**changes) -> Sheet:
    figure = go.Figure(go.Heatmap(z=[[0.5, -0.5]], x=[EVIL, "b"]))
    frame = pd.DataFrame({EVIL: ["x", EVIL], "number": [1.23456, float("nan")], "count": [3, 4]})
    parts = [
        Part("First", EVIL, [Drawing(figure, "a map"), Table.of(frame, "rows")], EVIL),
        Part("Second", items=[Texts(EVIL, {"a": EVIL}), Table.of(frame, "more", folded=True)]),
    ]
    made = {
        "kind": "trial",
        "title": EVIL,
        "lead": EVIL,
        "facts": {"model": EVIL},
        "remarks": [Remark(EVIL, "good")],
        "tiles": [("Effect", "0.4", EVIL)],
        "parts": parts,
    }
    return Sheet(**{**made, **changes})


def test_every_text_is_escaped():
    page = sheet_page(sheet())
    assert EVIL not in page
    assert page.count("&lt;script&gt;window.hit = 1&lt;/script&gt;") >= 9


def test_numbers_are_shortened_and_missing_ones_a_dash():
    page = sheet_page(sheet())
    assert ">1.235<" in page and '<span class="none">\N{EN DASH}</span>' in page


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://example.org/a", True),
        ("../run-1/report.html", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
    ],
)
def test_a_link_leads_to_pages_and_files_alone(address, kept):
    table = Table(["run"], [["E1"]], links=[address])
    page = sheet_page(sheet(parts=[Part("Runs", items=[table])]))
    assert (f'href="{address}"' in page) == kept


def test_a_page_without_figures_carries_no_plotly(tmp_path):
    assert len(sheet_page(sheet(parts=[]))) < 60_000


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write_sheet(sheet(), tmp_path / "file" / "report.html")


def test_the_page_renders_without_an_error(browser, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    path = write_sheet(sheet(), tmp_path / "report.html")
    browser.get(path.as_uri())
    root = "return document.documentElement.dataset.ready"
    WebDriverWait(browser, 30).until(lambda page: page.execute_script(root) == "yes")
    assert browser.execute_script("return document.querySelectorAll('.js-plotly-plot').length") == 1
    assert browser.execute_script("return window.hit") is None
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
