"""A report as page and in the terminal: escaped, offline, and its numbers as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.report import Figure, Report, Section, Table, Text, Texts, plots
from saesteer.report.layout import Bar, Choice, Column, Described, Mark, Remark, Said, Tile
from saesteer.report.terminal import console
from saesteer.report.wording import NOTHING, Estimate, show
from saesteer.utils.errors import OutputError

EVIL = "<script>window.hit = 1</script>"
ESCAPED = "&lt;script&gt;window.hit = 1&lt;/script&gt;"


def own(page: str) -> str:
    """Return a page without plotly's script."""
    return re.sub(r"<script>/\*\*\n\* plotly.*?</script>", "", page, flags=re.DOTALL)


def hostile(**changes: Any) -> Report:
    def draw():
        return plots.heatmap(np.array([[0.5, -0.5]]), [EVIL], [EVIL, "b"], title=EVIL)

    columns = [Column(EVIL, "name", hint=EVIL), Column("number", "number"), Column("n", "n")]
    records = [{"name": n, "number": x, "n": 3} for n, x in (("x", 1.23456), (EVIL, float("nan")))]
    cells: list[Any] = [Mark(EVIL, "#123456", EVIL), Described(EVIL), Bar(0.5, 1.0)]
    sections = [
        Section(
            "First", EVIL, [Figure("map", EVIL, draw, EVIL), Table.of(records, columns, EVIL)], EVIL
        ),
        Section("Second", items=[Texts(EVIL, {EVIL: {EVIL: [Said(EVIL, Bar(-1.0, 2.0))]}})]),
        Section("Third", items=[Choice("who", "Who", {EVIL: [Text(EVIL)], "b": [Text("other")]})]),
        Section("Fourth", items=[Table(["a", "values", "c"], [cells], hints={"a": EVIL})]),
        Section("Fifth", items=[Text(EVIL, EVIL), Table.of(records, columns, "more", folded=True)]),
    ]
    made = {
        "kind": "trial",
        "title": EVIL,
        "lead": EVIL,
        "facts": {"model": EVIL},
        "remarks": [Remark(EVIL, "good")],
        "tiles": [Tile("Effect", "0.4", EVIL)],
        "sections": sections,
    }
    return Report(**{**made, **changes})


def test_every_text_is_escaped():
    page = own(hostile().to_html())
    assert EVIL not in page
    assert page.count(ESCAPED) >= 18
    # A column may be called as a method of Python's mappings is.
    assert "built-in method" not in page
    # Two scripts of the page's own making, besides plotly's: figures and the page's.
    assert len(re.findall(r"<script", page)) == 2
    # Figures are JSON that no text breaks.
    found = re.search(r'id="figures">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    (figure,) = json.loads(found[1], parse_constant=pytest.fail).values()
    assert figure["layout"]["title"]["text"] == ESCAPED.replace("&#39;", "'")


def test_nothing_is_fetched_and_plotly_is_embedded_once():
    page = hostile().to_html()
    assert page.count("* plotly.js v") == 1
    assert re.findall(r"(?:src|srcset)\s*=", own(page)) == []
    # The one link element is the empty icon, which keeps the browser from asking for one.
    assert re.findall(r"<link[^>]*>", own(page)) == ['<link rel="icon" href="data:,">']
    assert "@import" not in own(page) and "url(" not in own(page)
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert "plotly.js v" not in hostile(sections=[]).to_html()


@pytest.mark.parametrize(
    ("cell", "form", "shown", "value"),
    [
        (1.23456, "", "1.235", "1.23456"),
        (3, "", "3", "3"),
        (0.256, ".0%", "26%", "0.256"),
        (-0.0001, "+.2f", "0.00", "-0.0001"),
        (Estimate(0.5, 0.25, 0.75), ".2f", "0.50", "0.5"),
        (True, "", "yes", None),
        (None, "", NOTHING, None),
        (float("nan"), ".2f", NOTHING, None),
    ],
)
def test_a_number_is_rounded_and_kept_exactly_beside_it(cell, form, shown, value):
    page = own(Report("k", "t", "l", sections=[Section("s", items=[
        Table(["n"], [[cell]], forms={"n": form} if form else {})
    ])]).to_html())  # fmt: skip
    found = re.search(r'<td[^>]*?(?: data-value="([^"]*)")?>(.*?)</td>', page, flags=re.DOTALL)
    assert found is not None
    words = " ".join(re.sub(r"<[^>]+>", " ", found[2]).split())
    assert (words.split(" ")[0], found[1]) == (shown, value)
    assert ("0.25 to 0.75" in words) == isinstance(cell, Estimate)


def test_a_link_leads_to_pages_and_files_alone():
    kept = ["https://example.org/a", "../run-1/report.html"]
    bad = ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd"]
    table = Table(["run"], [[address] for address in (*kept, *bad)], links=[*kept, *bad])
    page = hostile(sections=[Section("Runs", items=[table])]).to_html()
    found = re.findall(r'href="([^"]*)"', own(page))
    assert [address for address in (*kept, *bad) if address in found] == kept


def test_half_an_emoji_and_control_characters_do_not_stop_the_page(tmp_path):
    texts = Texts("q", {"": {"a": [Said("half \ud83d null \x00 bell \x07")]}})
    report = hostile(sections=[Section("s", items=[texts])])
    page = report.write(tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    assert "half ? null \N{REPLACEMENT CHARACTER} bell \N{REPLACEMENT CHARACTER}" in page
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        report.write(tmp_path / "file" / "report.html")


def test_the_terminal_fits_and_says_where_everything_is(capsys):
    long = "[bold]very[/bold] " * 12
    table = Table(
        ["name", "value", "hidden"],
        [[f"{long}\x1b[31m", Estimate(0.5, 0.25, 0.75), "secret"]] * 20,
        links=["https://example.org/1"],
        printed=("name", "value"),
        note="What to keep in mind.",
    )
    texts = Texts("Why?", {"": {"strength 1": [Said("b" * 200)]}}, printed=True)
    report = Report(
        *("k", "t", f"Lead {long}"),
        remarks=[Remark(long, "bad")],
        sections=[Section("Shown", items=[table, texts]), Section("Not", items=[Text("hidden")])],
        beside=("tables",),
        commands=["saesteer show {folder} --more"],
    )
    report.print(console(), Path("runs/my run"))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "[bold]very[/bold]" in out and "\x1b" not in out
    assert "0.500 (0.250 to 0.750)" in out and "... and 4 more in the report" in out
    assert "secret" not in out and "hidden" not in out
    assert "Report: runs/my run/report.html" in out
    assert "Numbers: runs/my run/metrics.json, runs/my run/tables" in out
    assert out.splitlines()[-1] == "  saesteer show 'runs/my run' --more"


def test_a_number_that_rounds_to_nothing_has_no_sign():
    assert [show(v) for v in (-0.001, -0.5, None, float("inf"), True)] == [
        *("0.00", "\N{MINUS SIGN}0.50", NOTHING, NOTHING, NOTHING),
    ]
